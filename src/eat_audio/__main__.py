"""`python -m eat_audio` is `eat`."""

from eat_audio.cli import main

main()
