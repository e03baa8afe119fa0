"""Ask something in a forked process: what it imports and opens there is gone with it."""

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from gb10.errors import UserError


def ask(question: Callable[[], Any]) -> Any:
    """What ``question`` gives, of what JSON can carry.

    Raises:
        UserError: The question raises it, or its process ends without an answer.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _answer(question, writer)
    os.close(writer)
    with os.fdopen(reader) as answers:
        text = answers.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status or not text:
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        raise UserError(f"the process that looks at the model {how}; the log says why")
    answer = json.loads(text)
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["answer"]


def _answer(question: Callable[[], Any], writer: int) -> NoReturn:
    """In the forked process: write the answer and end at once, without what exit would tidy up twice."""
    status = 1
    try:
        try:
            answer = {"answer": question()}
        except UserError as error:
            answer = {"error": str(error)}
        with os.fdopen(writer, "w") as out:
            json.dump(answer, out)
        status = 0
    except BaseException:  # whatever it is: two of this process must not go on
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
