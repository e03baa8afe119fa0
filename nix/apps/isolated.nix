# The last lines of a program: a Python module that runs no code out of the current folder, which may hold a checkpoint
# with a json.py, nor out of the user's PYTHONPATH or site-packages (-I). The variables are for the processes that it
# starts: vLLM starts some with a plain `python -m`.
environment: words: ''
  unset PYTHONHOME PYTHONPATH PYTHONSTARTUP
  export PYTHONNOUSERSITE=1 PYTHONSAFEPATH=1
  exec ${environment}/bin/python3 -I -m ${words} "$@"
''
