import sys

from gb10.arguments import Command, run

if __name__ == "__main__":
    sys.exit(
        run(
            "python -m gb10_lab.predict",
            "The constants of gb10 predict.",
            {
                "fit": Command(
                    "gb10_lab.predict.command:run", "Fit them, and print how far held-out rows are off."
                )
            },
        )
    )
