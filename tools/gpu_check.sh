#!/usr/bin/env bash
# Everything there is to find out on a machine with a GPU, in one command and a given time.
#
#   tools/gpu_check.sh --download WHEELS            where there is a network: fetch what is missing there
#   tools/gpu_check.sh -w WHEELS -o RESULTS         on the GPU machine, without a network
#   tools/gpu_check.sh --only "tests bench" ...     some stages alone; the environment must be there
#   tools/gpu_check.sh --train CONFIG --data DATA --run RUN --minutes 9 [--start CHECKPOINT] [-w WHEELS]
#
#   -w, --wheels DIR         wheels, PyCUDA's source, NAME.bundle folders; without it, pip's index
#   -o, --results DIR        logs, tests.xml, peers.csv, summary.csv; build/gpu_check unless given
#   --minutes N              all of it, 9 unless given; time that a stage leaves goes to the next
#   --bundle DIR             measure this one; may be given several times
#   --size WxH               of the benchmark, 1280x720 unless given
#   --architectures LIST     to compile for, "sm_87,sm_90"; the GPU's own unless given; "all"
#   --python PYTHON          python3 unless given; its packages are used where they will do
#   --dry-run                print the stages
#
# A stage that fails or runs out of time does not stop the next, and what it has found by then is
# in RESULTS. Ends with 0 if all passed, else 1.
# $EDGEADAPT_COMMIT names the commit where a copy of the tree has no history.
set -uo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SELF=$ROOT/tools/gpu_check.sh
export ROOT SELF

# name:percent of the time, of which the next may have what one leaves. What says most comes first.
STAGES="machine:2 environment:10 pycuda:16 install:24 smoke:6 tests:18 bench:12 sanitizer:12"

die() {
  echo "gpu_check: $*" >&2
  exit 2
}

usage() { sed -n '2,/^set/p' "$SELF" | sed -n 's/^# \{0,1\}//p'; }

parse() {
  WHEELS="" RESULTS=$ROOT/build/gpu_check MINUTES=9 BUNDLES="" SIZE=1280x720 ARCHITECTURES=""
  PYTHON=python3 DRY_RUN="" DOWNLOAD="" ONLY="" TRAIN="" DATA="" RUN="" START=""
  while [ $# -gt 0 ]; do
    case $1 in
      --dry-run) DRY_RUN=1 && shift && continue ;;
      -h | --help) usage && exit 0 ;;
    esac
    [ $# -gt 1 ] || die "$1 needs a value, or is no option; --help lists them."
    case $1 in
      -w | --wheels) WHEELS=$2 ;;
      -o | --results) RESULTS=$2 ;;
      --minutes) MINUTES=$2 ;;
      --bundle) BUNDLES="$BUNDLES $(absolute "$2")" ;;
      --size) SIZE=$2 ;;
      --architectures) ARCHITECTURES=$2 ;;
      --python) PYTHON=$2 ;;
      --download) DOWNLOAD=$2 ;;
      --only) ONLY=$2 ;;
      --train) TRAIN=$2 ;;
      --data) DATA=$2 ;;
      --run) RUN=$2 ;;
      --start) START=$2 ;;
      *) die "there is no option $1; --help lists them." ;;
    esac
    shift 2
  done
  case $MINUTES in
    "" | *[!0-9]* | 0) die "--minutes must be a whole number, at least 1, got $MINUTES." ;;
  esac
  [ -z "$WHEELS" ] || [ -d "$WHEELS" ] || die "$WHEELS: no such folder."
  [ -z "$WHEELS" ] || WHEELS=$(absolute "$WHEELS")
}

absolute() { # whether it is there or not
  case $1 in
    /*) echo "$1" ;;
    *) echo "$PWD/$1" ;;
  esac
}

# --- where there is a network -------------------------------------------------------------------

download() {
  mkdir -p "$1" || die "$1 cannot be made."
  local here platforms platform
  here=$(cd "$1" && pwd)
  platforms=()
  for platform in 2_17 2_24 2_27 2_28 2_34; do platforms+=(--platform "manylinux_${platform}_x86_64"); done
  "$PYTHON" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp --abi cp312 --abi abi3 --abi none "${platforms[@]}" \
    --platform manylinux2014_x86_64 --platform any \
    -d "$here" -r "$ROOT/tools/gpu_wheels.txt" || return 1
  "$PYTHON" -m pip download -q --no-deps --no-binary pycuda -d "$here" "pycuda>=2025.1" || return 1
  bundles "$here" "$PYTHON"
  du -sh "$here"
}

# Networks with random weights, to be measured where PyTorch cannot export: as large as trained ones.
bundles() {
  local preset python=$2
  for preset in edge paper; do
    [ -d "$1/$preset.bundle" ] && continue
    PYTHONSAFEPATH=1 "$python" -m edgeadapt export edgeadapt.training.network:build \
      --option "preset=\"$preset\"" --name "$preset" -o "$1/$preset.bundle" ||
      echo "gpu_check: no $preset.bundle: edgeadapt[export] is not installed for $python."
  done
}

# --- stages; each is a process of its own -------------------------------------------------------

stage_machine() {
  nvidia-smi
  command -v nvcc && nvcc --version
  toolkit && echo "CUDA toolkit: $(toolkit)"
  "$PYTHON" - <<'PY'
import importlib.metadata as metadata, json, os, platform, sys
names = "torch numpy onnx onnxruntime safetensors attrs cattrs click rich pytest pytest-xdist hypothesis"
names += " cuda-bindings pycuda nvidia-cudnn-cu13 nvidia-cudnn-cu12 nvidia-cudnn-frontend setuptools"
found = {}
for name in names.split():
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        found[name] = ""
try:
    import torch
    found["torch.cuda"] = torch.version.cuda
    found["torch.cudnn"] = torch.backends.cudnn.version() if torch.cuda.is_available() else None
except ImportError:
    pass
told = {"python": sys.version, "platform": platform.platform(), "cores": os.cpu_count()}
told |= {"commit": os.environ.get("EDGEADAPT_COMMIT", ""), "packages": found}
text = json.dumps(told, indent=1)
print(text)
open(os.path.join(os.environ["RESULTS"], "machine.json"), "w").write(text + "\n")
PY
  nvidia-smi -L >/dev/null # its failure is the stage's
}

# The folder that holds the toolkit's include/, whatever links or scripts nvcc is.
toolkit() {
  local top
  top=$(echo | nvcc --dryrun -x cu - 2>&1 | sed -n 's/^#\$ TOP=//p' | head -n 1)
  for top in "$top" "${CUDA_HOME:-}" /usr/local/cuda; do
    [ -n "$top" ] && [ -f "$top/include/cuda.h" ] && (cd "$top" && pwd -P) && return 0
  done
  return 1
}

stage_environment() {
  # pip is among the packages beside; a system's Python may lack what a new one is made of.
  [ -x "$VENV/bin/python" ] || "$PYTHON" -m venv --without-pip "$VENV" || return 1
  # The packages of the interpreter we were given, which may be in a virtual environment itself:
  # --system-site-packages would take those of the one below it.
  "$PYTHON" -c 'import site, sysconfig
for path in dict.fromkeys([sysconfig.get_path("purelib"), *site.getsitepackages()]): print(path)' \
    >"$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth"
  local from=()
  [ -z "$WHEELS" ] || from=(--no-index --find-links "$WHEELS")
  pip_here install -q --no-deps "${from[@]}" -r "$ROOT/tools/gpu_wheels.txt"
}

stage_pycuda() {
  if "$VENV/bin/python" -W ignore -c 'import pycuda.driver'; then
    echo "PyCUDA is there."
    return 0
  fi
  local from=() source=$WORK/pycuda root stub built
  [ -z "$WHEELS" ] || from=(--no-index --find-links "$WHEELS")
  if pip_here install -q --no-deps --only-binary=:all: "${from[@]}" pycuda; then
    "$VENV/bin/python" -W ignore -c 'import pycuda.driver' && return 0
    pip_here uninstall -q -y pycuda
  fi
  root=$(toolkit) || { echo "There is no cuda.h: install the CUDA toolkit." && return 1; }
  rm -rf "$source" && mkdir -p "$source/stub"
  if [ -n "$WHEELS" ] && ls "$WHEELS"/pycuda-*.tar.gz >/dev/null 2>&1; then
    tar xf "$(newest "$WHEELS"/pycuda-*.tar.gz)" -C "$source" --strip-components=1
  else
    pip_here download -q --no-deps --no-binary pycuda --no-build-isolation -d "$source" pycuda &&
      tar xf "$source"/pycuda-*.tar.gz -C "$source" --strip-components=1
  fi || return 1
  # A shared object may leave symbols open, so an empty library of the driver's name is enough,
  # as long as the linker keeps the name of a library that it sees no use for.
  stub=$source/stub
  echo | "${CC:-gcc}" -shared -x c - -Wl,-soname,libcuda.so.1 -o "$stub/libcuda.so" || return 1
  (cd "$source" && "$VENV/bin/python" configure.py --cuda-root="$root" --no-cuda-enable-curand \
    --cudadrv-lib-dir="$stub") || return 1
  # setuptools compiles one file after the other; NPY_NUM_BUILD_JOBS is not asked any more.
  LDFLAGS=-Wl,--no-as-needed pip_here wheel -q --no-deps --no-build-isolation -w "$RESULTS" "$source" ||
    return 1
  built=$(newest "$RESULTS"/pycuda-*.whl)
  pip_here install -q --no-deps --no-index "$built" &&
    "$VENV/bin/python" -W ignore -c 'import pycuda.driver'
}

newest() { printf '%s\n' "$@" | sort -V | tail -n 1; }

stage_install() {
  local required=1
  if [ "$ARCHITECTURES" = all ]; then
    unset EDGEADAPT_CUDA_ARCHITECTURES
  else
    [ "$ARCHITECTURES" != none ] || required=0
    EDGEADAPT_CUDA_ARCHITECTURES=${ARCHITECTURES:-$(own_architecture)} || return 1
    export EDGEADAPT_CUDA_ARCHITECTURES
    echo "for $EDGEADAPT_CUDA_ARCHITECTURES"
  fi
  # What build/ holds of another machine is used as far as it fits.
  rm -rf "$ROOT"/build/lib* "$ROOT"/build/bdist*
  EDGEADAPT_REQUIRE_CUDA=$required pip_here install --no-deps --no-build-isolation --force-reinstall \
    "$ROOT" -v 2>&1 | grep -v "^  \(copying\|creating\|adding\)" &&
    python_here -m edgeadapt --version
}

own_architecture() {
  local capability
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1)
  [ -n "$capability" ] || { echo "nvidia-smi does not say: give --architectures" >&2 && return 1; }
  echo "sm_${capability/./}"
}

pip_here() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }

python_here() { PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 "$VENV/bin/python" "$@"; }

# One image in every precision, held to the CPU's engine; also what the sanitizers watch.
stage_smoke() {
  python_here "$ROOT/tools/gpu_smoke.py" fp32 tf32 fp16 bf16
}

# One process a file: a GPU that one test loses is lost to its process only. The time ends for each
# of them before it does for the stage, so that there is something to put together.
stage_tests() {
  mkdir -p "$WORK/xml" "$WORK/tests" && rm -f "$WORK"/xml/* "$WORK"/tests/*
  TESTS_END=$(($(date +%s) + STAGE_SECONDS - 12)) && export TESTS_END
  (cd "$ROOT" && printf '%s\n' tests/runtime/cuda/test_*gpu*.py tests/kernels/cuda/test_*.py |
    grep -v -e test_host -e test_mirror -e test_fatbin -e test_library |
    xargs -P 6 -n 1 "$BASH" "$SELF" --run-test)
  grep -hE "^(FAILED|ERROR)|[0-9]+ (passed|failed|error)|no time" "$WORK"/tests/*.log | cut -c 1-300
  python_here "$ROOT/tools/gpu_results.py" "$RESULTS/tests.xml" "$WORK"/xml
}

run_test() {
  local name left=$((TESTS_END - $(date +%s))) code
  name=$(echo "${1%.py}" | tr / .)
  if [ "$left" -lt 3 ]; then
    echo "there was no time for $1" >"$WORK/tests/$name.log"
    : >"$WORK/xml/$name.xml" # which counts as an error
    return 0
  fi
  # As Ctrl-C does, after which pytest still writes what it knows.
  (cd "$ROOT" && PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 timeout -s INT -k 6 "$left" "$VENV/bin/python" \
    -m pytest "$1" -q -m gpu --require-gpu -p no:cacheprovider -W default --tb=short \
    --junitxml="$WORK/xml/$name.xml") >"$WORK/tests/$name.log" 2>&1
  code=$?
  [ $code -ne 5 ] || rm -f "$WORK/xml/$name.xml" # no tests there
  if [ $code -eq 124 ] || [ $code -eq 137 ] || [ $code -ge 128 ]; then
    echo "ended with $code: no time was left, or a crash" >>"$WORK/tests/$name.log"
    : >"$WORK/xml/$name.late.xml"
  fi
  return 0 # the verdict is in the XML, and xargs goes on
}

stage_sanitizer() {
  local tool checker found=0 code left end=$(($(date +%s) + STAGE_SECONDS - 5))
  echo "tool,exit" >"$RESULTS/sanitizer.csv"
  checker=$(command -v compute-sanitizer || ls "$(toolkit)"/bin/compute-sanitizer 2>/dev/null)
  [ -n "$checker" ] || { echo "skipped: there is no compute-sanitizer." && return 77; }
  for tool in memcheck racecheck; do
    left=$((end - $(date +%s)))
    [ "$tool" = racecheck ] || left=$((left / 2)) # what memcheck leaves, racecheck has
    timeout -k 3 "$left" "$checker" --tool "$tool" --error-exitcode 66 --print-limit 20 \
      env PYTHONSAFEPATH=1 "$VENV/bin/python" "$ROOT/tools/gpu_smoke.py" --small fp32 fp16 >"$WORK/$tool.log" 2>&1
    code=$?
    tail -n 25 "$WORK/$tool.log"
    echo "$tool ended with $code"
    echo "$tool,$code" >>"$RESULTS/sanitizer.csv"
    if grep -q "Device not supported" "$WORK/$tool.log"; then
      echo "skipped: $tool does not work on this machine." && return 77
    fi
    [ $code -eq 0 ] || found=1
  done
  return $found
}

# A call for each row or two of PyTorch's, so that what was measured stays when time runs out: ours
# first, then what ours is held to. The compiler's take minutes each and come last.
stage_bench() {
  local bundle code=0 list=$BUNDLES ways
  if [ -z "$list" ] && [ -n "$WHEELS" ]; then list=$(ls -d "$WHEELS"/*.bundle 2>/dev/null); fi
  if [ -z "$list" ]; then
    bundles "$WORK" "$VENV/bin/python" && list=$(ls -d "$WORK"/*.bundle 2>/dev/null)
  fi
  [ -n "$list" ] || list=default
  while read -r ways; do
    for bundle in $list; do measure "$bundle" "$ways" || code=1; done
  done <<'WAYS'
torch
torch|torch graph channels-last fp16
torch|torch compile channels-last fp16
torch|torch channels-last|torch channels-last fp16|torch graph channels-last
torch|torch compile channels-last
torch|torch channels-last bf16|torch graph channels-last bf16|torch graph
torch|torch compile channels-last bf16
WAYS
  return $code
}

measure() { # BUNDLE "way|way"
  local bundle=$1 way arguments=()
  while read -r way; do arguments+=(--way "$way"); done < <(echo "$2" | tr '|' '\n')
  echo "== $bundle: $2"
  python_here -m edgeadapt bench peers "$bundle" --device cuda --size "$SIZE" --repeats 7 \
    -o "$RESULTS/peers.csv" "${arguments[@]}" </dev/null
}

# --- all of it ----------------------------------------------------------------------------------

check() {
  local start end last=0 name share begin code limit verdict=0 word
  start=$(date +%s)
  end=$((start + MINUTES * 60))
  echo "stage,result,seconds" >"$RESULTS/summary.csv"
  for name in $STAGES; do
    share=${name#*:} name=${name%:*}
    last=$((last + share > 100 ? 100 : last + share))
    [ -z "$ONLY" ] || [[ " $ONLY " == *" $name "* ]] || continue
    begin=$(date +%s)
    limit=$((start + MINUTES * 60 * last / 100 - begin))
    [ -z "$ONLY" ] || limit=$((end - begin))
    [ "$limit" -gt 5 ] || limit=$((end - begin > 5 ? 5 : end - begin))
    if [ "$limit" -le 0 ]; then
      code=124
    else
      echo "== $name, at most $limit s"
      STAGE_SECONDS=$limit timeout -k 5 "$limit" "$BASH" "$SELF" --run-stage "$name" \
        >"$WORK/$name.log" 2>&1 </dev/null
      code=$?
      tail -n 12 "$WORK/$name.log" | cut -c 1-200
      collect # at once: whoever stops all of this finds it
    fi
    case $code in
      0) word=passed ;;
      77) word=skipped ;;
      124 | 137) word="out of time" verdict=1 ;;
      *) word="failed ($code)" verdict=1 ;;
    esac
    echo "$name,$word,$(($(date +%s) - begin))" >>"$RESULTS/summary.csv"
  done
  collect
  echo
  column -s, -t "$RESULTS/summary.csv" 2>/dev/null || cat "$RESULTS/summary.csv"
  echo "All of it took $(($(date +%s) - start)) s; results are in $RESULTS; exit code $verdict"
  return $verdict
}

# One log of everything, short enough to be carried: the end of each.
collect() {
  local log
  for log in "$WORK"/*.log "$WORK"/tests/*.log; do
    [ -f "$log" ] || continue
    echo "##### ${log#"$WORK"/}"
    tail -c 400000 "$log"
  done >"$RESULTS/log.txt"
}

train() {
  if [ -z "$DATA" ] || [ -z "$RUN" ]; then die "--train needs --data and --run."; fi
  local stage
  export ARCHITECTURES=none # PyTorch trains
  for stage in environment install; do
    STAGE_SECONDS=300 "$BASH" "$SELF" --run-stage "$stage" >"$WORK/$stage.log" 2>&1 </dev/null ||
      { tail -n 20 "$WORK/$stage.log" && die "$stage failed"; }
  done
  local resume=()
  [ -d "$RUN" ] && resume=(--resume)
  [ -z "$START" ] || resume+=(--start "$START") # a run that is there goes on from its own
  python_here -m edgeadapt train joint "$TRAIN" -o "$RUN" --data "$DATA" --minutes "$MINUTES" \
    --accelerator cuda "${resume[@]}"
}

main() {
  case ${1:-} in
    --run-stage) "stage_$2" && exit 0 || exit $? ;;
    --run-test) run_test "$2" && exit 0 ;;
  esac
  parse "$@"
  if [ -n "$DRY_RUN" ]; then
    echo "within $MINUTES minutes, results in $RESULTS:"
    echo "$STAGES" | tr ' ' '\n' | sed 's/:.*//; s/^/  /'
    exit 0
  fi
  [ -z "$DOWNLOAD" ] || { download "$DOWNLOAD" && exit 0 || exit 1; }
  mkdir -p "$RESULTS" || die "$RESULTS cannot be made."
  RESULTS=$(cd "$RESULTS" && pwd)
  WORK=$ROOT/build/gpu_work VENV=$ROOT/build/gpu_work/venv
  mkdir -p "$WORK"
  EDGEADAPT_COMMIT=${EDGEADAPT_COMMIT:-$(git -C "$ROOT" describe --always --dirty --exclude '*' 2>/dev/null)}
  export WHEELS RESULTS WORK VENV MINUTES BUNDLES SIZE ARCHITECTURES PYTHON EDGEADAPT_COMMIT
  # What one process leaves unmeasured the next goes on with.
  export EDGEADAPT_CUDNN_SECONDS=${EDGEADAPT_CUDNN_SECONDS:-40}
  if [ -n "$TRAIN" ]; then train; else check; fi
}

main "$@"
