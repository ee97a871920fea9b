#!/usr/bin/env bash
# What a machine with a GPU shows that no other can, in two parts of a few minutes each:
#
#     benchmarks/gpu.sh tests
#     benchmarks/gpu.sh speed path=DIR
#
# tests are those of tests/journeys/test_cuda.py. speed are the tables of docs/performance.md.
# Nothing is fetched. Where packages are missing, WHEELS=DIR has them; lmkit runs from the checkout.
set -uo pipefail
cd "$(dirname "$0")/.."

if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    python3 -m pip install -q --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
    export PYTHONPATH="$site"
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python3 -c 'import torch; print(torch.__version__, torch.version.cuda, torch.cuda.get_device_name())'

part=$1
shift
failed=0
case $part in
tests)
    python3 -m pytest -W default --durations=5 tests/journeys/test_cuda.py "$@" || failed=1
    ;;
speed)
    for shape in 200 650_tied 1500_tied awd; do
        for precision in bf16-mixed 32-true; do
            python3 benchmarks/train.py accelerator=cuda "shape=$shape" "precision=$precision" \
                steps=200 rounds=5 "$@" || failed=1
        done
    done
    ;;
*)
    echo "tests or speed, not $part" >&2
    failed=2
    ;;
esac
exit "$failed"
