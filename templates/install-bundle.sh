#!/bin/sh
# sudo sh install.sh [PREFIX]: put the vllm-install of this bundle on this host; no network, pip or venv module is needed.
set -eu
cd "$(dirname "$0")"
link=${1:-/usr/local}/bin/vllm-install
top=/opt/vllm-install
home=$top/tool

[ "$(id -u)" = 0 ] || { echo "error: installing into $home needs root: sudo sh $0" >&2; exit 1; }
if [ -e "$link" ] && [ "$(readlink "$link")" != "$home/bin/vllm-install" ]; then
    echo "error: $link is there and not ours; remove it, or choose another place: sudo sh $0 /opt/local" >&2
    exit 1
fi
version=$(sed -n 's/^  "python": "\(3\.[0-9]*\)",*$/\1/p' manifest.json)
for python in "/usr/bin/python$version" "/usr/local/bin/python$version" ""; do
    [ ! -x "$python" ] || break
done
[ -n "$python" ] || { echo "error: this bundle is for Python $version, which is not in /usr/bin or /usr/local/bin" >&2; exit 1; }

"$python" -I - <<'END'
import hashlib, json, pathlib, sys
wanted = {m["name"]: m["sha256"] for m in json.load(open("manifest.json"))["members"] if m["name"].startswith("tool/")}
found = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in pathlib.Path("tool").iterdir()}
if wanted != found:
    sys.exit("error: tool/ is not what manifest.json says; unpack the bundle again")
END

umask 022
mkdir -p "$top"
scratch=$(mktemp -d "$top/.tool.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
# uv comes as a wheel, and a wheel is a zip file; from then on it does the rest.
"$python" -I -m zipfile -e tool/uv-*.whl "$scratch"
uv=$(echo "$scratch"/uv-*.data/scripts/uv)
chmod +x "$uv"
export UV_CACHE_DIR="$scratch/cache" UV_OFFLINE=1 UV_NO_CONFIG=1 UV_PYTHON_DOWNLOADS=never
"$uv" venv --quiet --clear --python "$python" "$home"
"$uv" pip install --quiet --no-index --find-links tool --python "$home/bin/python" vllm-install
mkdir -p "${link%/*}"
ln -sf "$home/bin/vllm-install" "$link"
echo "installed: $("$link" --version)"
case :$PATH: in *":${link%/*}:"*) ;; *) echo "note: ${link%/*} is not on your PATH" ;; esac
