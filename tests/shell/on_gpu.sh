#!/usr/bin/env bash
# on_gpu.sh COMMAND...: runs it with all tensors on the GPU. Where there is none it is a skip, with the reason; where
# there is one, and the plugin, and both cannot work together, that is a failure.
set -euo pipefail
reason=$(scripts/mascon - <<'END'
local ok, why = pcall(require("mascon").set_default_device, "cuda")
io.write(ok and "" or tostring(why):gsub("^%S+:%d+: ", ""))
END
)
if [ -z "$reason" ]; then
    export MASCON_TEST_DEVICE=cuda
    exec "$@"
fi
echo "no GPU to test on: $reason"
[ ! -e /dev/nvidiactl ] || [ ! -e "$MASCON_BUILD_DIR/lib/mascon/libmascon_cuda.so" ] || exit 1
exit 77
