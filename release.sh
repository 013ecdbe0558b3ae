#!/usr/bin/env bash
# Builds the wheel and proves it: installed into empty environments, newest and oldest dependencies, every Python given,
# `longtape demo` from an empty folder and the test suite. PYTHONS="python3.11 python3.12" TORCH_INDEX=<url> ./release.sh
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=${PYTHON:-python3}
index=()
if [ -n "${TORCH_INDEX:-}" ]; then index=(--extra-index-url "$TORCH_INDEX"); fi

"$python" -m venv "$work/build"
"$work/build/bin/pip" install --quiet build
"$work/build/bin/python" -m build --quiet --wheel --outdir "$here/dist" "$here"
wheel=$(ls -t "$here"/dist/longtape-*.whl | head -n 1)
echo "built $wheel"

for interpreter in ${PYTHONS:-$python}; do
  for constraints in constraints.txt constraints-oldest.txt; do
    name="$interpreter with $constraints"
    environment="$work/$(basename "$interpreter")-${constraints%.txt}"
    "$interpreter" -m venv "$environment"
    bin="$environment/bin"
    "$bin/pip" install --quiet "${index[@]}" -c "$here/$constraints" "longtape[sample] @ file://$wheel"
    mkdir "$environment/empty"
    (cd "$environment/empty" && "$bin/longtape" demo --out demo > demo.txt && test -s demo/run/report.html)
    echo "$name: longtape demo wrote its report"
    "$bin/pip" install --quiet "${index[@]}" -c "$here/$constraints" "longtape[dev] @ file://$wheel"
    # The tests stand beside the package that is installed, not beside its source.
    mkdir "$environment/suite"
    cp -r "$here/tests" "$here/examples" "$here/benchmarks" "$here/docs" "$here/pyproject.toml" "$here/README.md" "$environment/suite"
    (cd "$environment/suite" && OMP_NUM_THREADS=1 "$bin/python" -m pytest -m "not soak" -n 2 --dist worksteal)
    echo "$name: the tests pass"
  done
done
