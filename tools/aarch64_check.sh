#!/usr/bin/env bash
# Install the runtime from wheels into an emulated 64-bit Arm system, and test it there.
#
#   sudo tools/aarch64_check.sh               what belongs to the CPU
#   sudo tools/aarch64_check.sh --quick       one test file of each kind
#   sudo tools/aarch64_check.sh --full        also compiles the wheel in there; slow tests too
#
#   -w, --work DIR         system, wheels, logs; build/aarch64_system unless given; kept for the next time
#   --suite NAME           of Debian: bookworm unless given; or, with --mirror and --keyring, of Ubuntu:
#   --mirror URL           jammy has the Python of JetPack 6, noble that of JetPack 7
#   --keyring FILE         that signs the mirror's packages, where apt does not have it
#   --cpu NAME             QEMU's; max unless given. An Orin's is nearest to cortex-a76
#   --python PYTHON        python3 unless given; has pip and venv, builds the wheel, fetches others
#   --offline              no wheels are looked for but those that are there
#   --only "tests"         some stages alone
#   --dry-run              print the stages
#
# On Debian: apt-get install mmdebstrap qemu-user-static g++-aarch64-linux-gnu. Root makes a user
# namespace with a binfmt_misc of its own (Linux 6.7), so the machine's stays as it is; on an older
# Linux the machine's must know QEMU. Ends with 0 if every stage passed, else 1.
set -uo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SELF=$ROOT/tools/aarch64_check.sh
STAGES="tools wheel system wheels install commands tests"
MOST_MEGABYTES=80
OLDEST_GLIBC=2.35 # of JetPack 6
# Python and C library of JetPack 6 and 7, and what their extra `cuda` takes; PyCUDA has no wheels.
JETPACKS="3.10:2.35:cuda-bindings==12.* 3.12:2.39:cuda-bindings==13.*"
MAGIC='\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
MASK='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
BINFMT=/proc/sys/fs/binfmt_misc

die() {
  echo "aarch64_check: $*" >&2
  exit 2
}

usage() { sed -n '2,/^set/p' "$SELF" | sed -n 's/^# \{0,1\}//p'; }

parse() {
  WORK=$ROOT/build/aarch64_system SUITE=bookworm MIRROR="" KEYRING="" CPU=max PYTHON=python3 OFFLINE=""
  MODE=usual ONLY="" DRY_RUN=""
  while [ $# -gt 0 ]; do
    case $1 in
      --dry-run) DRY_RUN=1 && shift && continue ;;
      --offline) OFFLINE=--offline && shift && continue ;;
      --quick | --full) MODE=${1#--} && shift && continue ;;
      -h | --help) usage && exit 0 ;;
    esac
    [ $# -gt 1 ] || die "$1 needs a value, or is no option; --help lists them."
    case $1 in
      -w | --work) WORK=$2 ;;
      --suite) SUITE=$2 ;;
      --mirror) MIRROR=$2 ;;
      --keyring) KEYRING=$2 ;;
      --cpu) CPU=$2 ;;
      --python) PYTHON=$2 ;;
      --only) ONLY=$2 ;;
      *) die "there is no option $1; --help lists them." ;;
    esac
    shift 2
  done
  [[ $SUITE =~ ^[a-z0-9-]+$ ]] || die "--suite must be a name like bookworm, got $SUITE."
  [ -z "$KEYRING" ] || [ -f "$KEYRING" ] || die "$KEYRING: no such file."
  for stage in $ONLY; do
    [[ " $STAGES " == *" $stage "* ]] || die "there is no stage $stage; there are: $STAGES."
  done
}

emulator() {
  local name path
  for name in qemu-aarch64-static qemu-aarch64; do
    path=$(command -v "$name") && ! ldd "$path" 2>/dev/null | grep -q '=>' && echo "$path" && return
  done
  return 1
}

# Whether the machine's own binfmt_misc runs Arm's programs, also below another root (F).
registered() {
  local file
  for file in "$BINFMT"/*; do
    grep -q '^magic 7f454c460201010000000000000000000200b7' "$file" 2>/dev/null &&
      grep -q '^enabled' "$file" && grep -q '^flags:.*F' "$file" && return 0
  done
  return 1
}

# --- stages; each is a process of its own -------------------------------------------------------

stage_tools() {
  local missing=""
  command -v mmdebstrap || missing="$missing mmdebstrap"
  emulator || missing="$missing qemu-user-static"
  command -v aarch64-linux-gnu-g++ || missing="$missing g++-aarch64-linux-gnu"
  [ -z "$missing" ] || { echo "Install what is missing; on Debian: apt-get install$missing" && return 1; }
  "$(emulator)" --version | head -n 1
  aarch64-linux-gnu-g++ --version | head -n 1
  [ -x "$WORK/venv/bin/python" ] || "$PYTHON" -m venv "$WORK/venv" || return 1
  "$WORK/venv/bin/python" -c 'import packaging' 2>/dev/null ||
    "$WORK/venv/bin/python" -m pip install -q packaging
}

# Of a copy, so that two runs, or a run and somebody at work, do not meet in build/.
stage_wheel() {
  local tree=$WORK/tree needs
  mkdir -p "$tree" && rm -rf "$tree"/{core,training,export,kernels,runtime,benchmarks,tests,tools,docs,examples}
  tar -C "$ROOT" --exclude=./.git --exclude=./build --exclude=./dist --exclude='./.venv*' --exclude=./.view \
    --exclude='*.egg-info' --exclude=__pycache__ --exclude='_native.so*' --exclude='_kernels.*' -cf - . |
    tar -C "$tree" -xf - || return 1
  rm -rf "$tree"/build/lib* "$tree"/build/bdist* "$WORK"/wheel && mkdir "$WORK/wheel"
  (cd "$tree" && _PYTHON_HOST_PLATFORM=linux-aarch64 EDGEADAPT_CUDA_ARCHITECTURES=none \
    "$WORK/venv/bin/python" -m pip wheel -q --no-deps -w "$WORK/wheel" .) || return 1
  own_wheel && "$WORK/venv/bin/python" -m zipfile -e "$(own_wheel)" "$WORK/wheel/unpacked" || return 1
  library=$WORK/wheel/unpacked/edgeadapt/kernels/_native.so
  [ -f "$library" ] || { echo "The wheel has no native engine: the compiler's words are above." && return 1; }
  aarch64-linux-gnu-readelf -d "$library" | grep NEEDED
  needs=$(aarch64-linux-gnu-readelf -V "$library" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1)
  echo "needs $needs; JetPack 6 has GLIBC_$OLDEST_GLIBC"
  [ "$(printf '%s\n' "$needs" "GLIBC_$OLDEST_GLIBC" | sort -V | tail -n 1)" = "GLIBC_$OLDEST_GLIBC" ]
}

own_wheel() { ls "$WORK"/wheel/edgeadapt-*_aarch64.whl; }

stage_system() {
  if [ ! -d "$SYSTEM" ]; then
    local options=(--architectures=arm64 --variant=minbase --skip=check/qemu)
    options+=(--include=python3-venv,libstdc++6,libgomp1)
    [ "$MODE" != full ] || options+=(--include=g++)
    [ -z "$KEYRING" ] || options+=("--keyring=$KEYRING")
    rm -rf --one-file-system "$SYSTEM.new"
    # shellcheck disable=SC2086 # no mirror, no argument
    mmdebstrap "${options[@]}" "$SUITE" "$SYSTEM.new" $MIRROR && mv "$SYSTEM.new" "$SYSTEM" || return 1
  fi
  if [ "$MODE" = full ] && [ ! -x "$SYSTEM/usr/bin/g++" ]; then
    echo "There is no g++ in $SYSTEM: remove it and run again with --full." && return 1
  fi
  grep PRETTY_NAME "$SYSTEM/etc/os-release"
  arm python3 -c 'import platform, sys; print(platform.machine(), sys.version, *platform.libc_ver())'
}

# A program of the other system. Its clock is the machine's and it hears nothing of the machine's
# variables; it has no network to want.
arm() {
  chroot "$SYSTEM" /usr/bin/env -i PATH=/opt/edgeadapt/bin:/usr/bin:/bin HOME=/tmp LANG=C.UTF-8 \
    COLUMNS=110 PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 CI=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
    QEMU_CPU="${EMULATED:-$CPU}" "$@"
}

stage_wheels() {
  local one python glibc of name code=0
  read -r python glibc < <(arm python3 -c 'import platform, sys
print("{}.{}".format(*sys.version_info), platform.libc_ver()[1])')
  [ -n "$glibc" ] || return 1
  echo "In this system:"
  sizes "$python" "$glibc" || code=1
  for one in $JETPACKS; do
    IFS=: read -r of glibc name <<<"$one"
    echo "With the extra cuda but for PyCUDA, as on a JetPack with Python $of:"
    sizes "$of" "$glibc" "$name" "nvidia-cudnn-frontend>=1.22,<1.29" || code=1
  done
  echo "To test with, and for the demo; not counted:"
  fetched "$WORK/wheels/$python" "$python" "$glibc" "$(own_wheel)" \
    'scikit-image>=0.24' 'pytest>=8.3' 'hypothesis>=6.100' tomli | tail -n 1 || code=1
  return $code
}

sizes() {
  local python=$1 glibc=$2
  shift 2
  fetched "$WORK/wheels/$python" "$python" "$glibc" --most "$MOST_MEGABYTES" "$(own_wheel)" "$@"
}

fetched() {
  local folder=$1 python=$2 glibc=$3
  shift 3
  # shellcheck disable=SC2086 # empty or one word
  "$WORK/venv/bin/python" "$ROOT/tools/aarch64_wheels.py" -d "$folder" --python "$python" --glibc "$glibc" \
    $OFFLINE "$@"
}

stage_install() {
  local python
  python=$(arm python3 -c 'import sys; print("{}.{}".format(*sys.version_info))') || return 1
  rm -rf "$SYSTEM"/wheels "$SYSTEM"/tree && mkdir "$SYSTEM/wheels" "$SYSTEM/tree" || return 1
  cp "$WORK/wheels/$python"/*.whl "$SYSTEM/wheels/" && cp "$(own_wheel)" "$SYSTEM/wheels/" || return 1
  cp -r "$WORK"/tree/{pyproject.toml,setup.py,VERSION,README.md,LICENSE,MANIFEST.in,core,export,kernels,runtime} \
    "$WORK"/tree/{training,benchmarks,tests,tools,docs,examples} "$SYSTEM/tree/" || return 1
  [ -x "$SYSTEM/opt/edgeadapt/bin/pip" ] || arm python3 -m venv /opt/edgeadapt || return 1
  arm pip install -q --no-index --find-links /wheels edgeadapt || return 1
  arm pip install -q --no-index --no-deps --force-reinstall --find-links /wheels edgeadapt || return 1
  arm pip check && arm pip list --format=freeze
}

stage_commands() {
  local code EMULATED
  rm -rf "$SYSTEM/tmp/commands" && mkdir "$SYSTEM/tmp/commands" || return 1
  say_and_run edgeadapt --version || return 1
  say_and_run edgeadapt doctor || return 1
  echo "\$ edgeadapt doctor --device orin-nano --json"
  arm edgeadapt doctor --device orin-nano --json >"$WORK/doctor.json"
  code=$?
  "$PYTHON" -c 'import json, sys
said = json.load(open(sys.argv[1])); print(said["device"], said["would_use"], "exit code", said["exit_code"])
for one in said["findings"]:
    if one["state"] != "ok": print(one["state"], one["check"], "-", one["found"], "->", one["fix"])
sys.exit(said["exit_code"] != int(sys.argv[2]) or said["would_use"] != "native")' "$WORK/doctor.json" $code || return 1
  say_and_run edgeadapt info nano --plan --size 256x256 | grep -v '^[0-9]' || return 1
  arm python -c "from PIL import Image; import numpy as np
x = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
Image.fromarray(x).resize((48, 36), 3).save('/tmp/commands/photo.png')" || return 1
  run_and_keep onnxruntime --backend onnxruntime && run_and_keep native --backend native &&
    EMULATED=cortex-a76 run_and_keep no-bfloat16 --backend native && # as an Orin, nearly
    run_and_keep bfloat16 --backend native --precision bf16 || return 1
  arm python -c "from PIL import Image; import numpy as np
one, *others = [np.asarray(Image.open(f'/tmp/commands/{name}.png')).astype(int)
                for name in ('onnxruntime', 'native', 'no-bfloat16', 'bfloat16')]
*worst, rounded = [int(abs(one - other).max()) for other in others]
print('largest differences from ONNX Runtime, of 255:', worst, 'in bf16', rounded)
assert max(worst) <= 1 and rounded <= 4 and one.std() > 5" || return 1
  arm pip install -q --no-index --find-links /wheels --no-compile 'scikit-image>=0.24' || return 1
  # A step at its 512x512 takes minutes in here.
  say_and_run edgeadapt demo --bundle nano -o /tmp/commands/demo --steps "$([ "$MODE" = full ] && echo 1 || echo 0)" &&
    cp "$SYSTEM/tmp/commands/demo/demo.png" "$WORK/demo.png"
}

run_and_keep() {
  local name=$1
  shift
  say_and_run edgeadapt run nano /tmp/commands/photo.png -o "/tmp/commands/$name.png" --steps 2 "$@"
}

say_and_run() {
  echo "\$ $*" && arm "$@"
}

stage_tests() {
  local marks="not gpu and not slow" paths="core kernels runtime" code
  local compile="--ignore=tests/kernels/test_build.py --ignore=tests/runtime/profile/test_cuda.py"
  compile="$compile --ignore=tests/runtime/tensorrt/test_backend.py"
  case $MODE in
    quick) paths="core/test_bundle.py kernels/test_matmul.py kernels/test_l1_loss.py runtime/test_session.py
      runtime/test_native_backend.py runtime/test_onnxruntime_backend.py runtime/doctor" ;;
    full) marks="not gpu" compile="" ;;
  esac
  arm pip install -q --no-index --find-links /wheels --no-compile pytest hypothesis tomli 'scikit-image>=0.24' || return 1
  # What runs kernels of GPUs on the host compiles them, for minutes; there is no compiler without
  # --full. QEMU has no processor's peaks and times, and takes minutes to bring a backward pass to 16
  # bits; rounding every result is numpy's alone.
  # shellcheck disable=SC2086 # several paths
  cp "$ROOT/tools/without.py" "$SYSTEM/tree/tools/" || return 1
  arm sh -c 'cd /tree && PYTHONPATH=tools exec pytest -p without -p no:cacheprovider -m "$1" \
    --ignore=tests/kernels/cuda --ignore=tests/runtime/cuda $3 --ignore=tests/runtime/profile/test_peaks.py \
    -k "not large_libraries and not on_a_gpu and not adaptation_in_fp16 and not every_result_is_rounded" --durations=5 --tb=short -r sfE --junitxml=/tmp/tests.xml \
    $(printf "tests/%s " $2)' sh "$marks" "$paths" "$compile"
  code=$?
  cp "$SYSTEM/tmp/tests.xml" "$WORK/tests.xml"
  return $code
}

# --- all of it ----------------------------------------------------------------------------------

# In the namespaces: the stages, one after the other; those after a failure have nothing to stand on.
inside() {
  local stage begin code verdict=0 word
  if [ -n "$PRIVATE" ]; then
    until grep -q . /proc/self/gid_map; do sleep 0.1; done # which the process outside writes
    mount -t binfmt_misc none "$BINFMT" &&
      printf '%s' ":edgeadapt-aarch64:M::$MAGIC:$MASK:$(emulator):PF" >"$BINFMT/register" || return 1
  fi
  echo "stage,result,seconds" >"$WORK/summary.csv"
  for stage in $STAGES; do
    [ -z "$ONLY" ] || [[ " $ONLY " == *" $stage "* ]] || continue
    begin=$(date +%s)
    echo "== $stage"
    "$BASH" "$SELF" --run-stage "$stage" 2>&1 </dev/null | tee "$WORK/logs/$stage.log"
    code=${PIPESTATUS[0]} word=passed
    [ "$code" -eq 0 ] || word="failed ($code)" verdict=1
    echo "$stage,$word,$(($(date +%s) - begin))" >>"$WORK/summary.csv"
    [ $verdict -eq 0 ] || break
  done
  return $verdict
}

# They end with the namespace that the script made.
mounts() {
  local name cpu features="fp asimd aes pmull sha1 sha2 crc32 atomics asimdrdm asimddp"
  for name in proc sys dev; do
    mountpoint -q "$SYSTEM/$name" || mount --rbind "/$name" "$SYSTEM/$name" || return 1
  done
  # QEMU before 8.1 shows the machine's own; ONNX Runtime crashes when it finds no Arm in it.
  arm grep -q "CPU implementer" /proc/cpuinfo && return 0
  # HWCAP2_BF16 of AT_HWCAP2, as the kernel tells programs
  arm python3 -c 'import ctypes, sys
ask = ctypes.CDLL(None).getauxval
ask.argtypes, ask.restype = [ctypes.c_ulong], ctypes.c_ulong
sys.exit(not ask(26) >> 14 & 1)' && features="$features bf16"
  for cpu in $(seq 0 $(($(nproc) - 1))); do
    printf '%s\n' "processor : $cpu" "Features : $features " "CPU implementer : 0x41" "CPU architecture: 8" \
      "CPU variant : 0x0" "CPU part : 0xd42" "CPU revision : 1" ""
  done >"$WORK/cpuinfo" # an Orin's Cortex-A78AE
  mount --bind "$WORK/cpuinfo" "$SYSTEM/proc/cpuinfo"
}

check() {
  local child code stage options=(--mount --pid --fork --kill-child)
  PRIVATE=""
  registered || { PRIVATE=1 && options+=(--user); }
  export ROOT WORK SUITE MIRROR KEYRING CPU PYTHON OFFLINE MODE ONLY SYSTEM PRIVATE
  unshare "${options[@]}" "$BASH" "$SELF" --inside &
  child=$!
  trap 'kill "$child" 2>/dev/null' INT TERM
  [ -z "$PRIVATE" ] || map_users "$child"
  wait "$child"
  code=$?
  # What was half made, if it was; its mounts are gone.
  rm -rf --one-file-system "$SYSTEM.new"
  echo
  column -s, -t "$WORK/summary.csv" 2>/dev/null || cat "$WORK/summary.csv"
  for stage in ${ONLY:-$STAGES}; do
    grep -hE "^(PRETTY_NAME|aarch64 |qemu-|needs GLIBC|onnxruntime=|numpy=|largest|[0-9]+ modules)|  together|[0-9]+ passed" \
      "$WORK/logs/$stage.log" 2>/dev/null | cut -c 1-150
  done
  echo "Results are in $WORK; exit code $((code != 0))"
  return $((code != 0))
}

# dpkg gives files to users that a namespace must know; only a process outside may say so.
map_users() {
  local own file
  own=$(readlink /proc/self/ns/user)
  until [ "$(readlink "/proc/$1/ns/user")" != "$own" ]; do
    kill -0 "$1" 2>/dev/null || return 1
    sleep 0.1
  done
  for file in uid_map gid_map; do echo "0 0 65536" >"/proc/$1/$file" || kill "$1"; done
}

main() {
  case ${1:-} in
    --inside) inside && exit 0 || exit 1 ;;
    --run-stage)
      case $2 in wheels | install | commands | tests) mounts || exit 1 ;; esac
      "stage_$2"
      exit
      ;;
  esac
  parse "$@"
  if [ -n "$DRY_RUN" ]; then
    echo "in $WORK:" && echo "$STAGES" | tr ' ' '\n' | sed 's/^/  /'
    exit 0
  fi
  [ "$(id -u)" = 0 ] || die "mounts and another root need root: sudo $SELF"
  [[ $(uname -sm) == "Linux x86_64" ]] || die "this is for Linux on x86-64, not $(uname -sm)."
  mkdir -p "$WORK/logs" || die "$WORK cannot be made."
  WORK=$(cd "$WORK" && pwd)
  SYSTEM=$WORK/$SUITE
  check
}

main "$@"
exit
