#!/usr/bin/env bash
# A file that h5py writes by the words of the README's format section, and by nothing else, is one of mascon's own: it
# is held to the strict rules, passes them, knows its layers, and loads, converts and verifies as any other.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mascon=$here/../../scripts/mascon
python=python3
"$python" -c 'import h5py, numpy' 2>/dev/null || python=/usr/bin/python3
if ! "$python" -c 'import h5py, numpy' 2>/dev/null; then
    echo 'python3 with h5py and numpy is missing: apt-get install python3-h5py python3-numpy'
    exit 77
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/write.py" <<'PYTHON'
import sys
import h5py
import numpy as np

# element [expert, row, column] is expert * 16 + row * 5 + column: exact in bfloat16
G, N, K = 12, 3, 5
weight = np.arange(G)[:, None, None] * 16 + np.arange(N)[None, :, None] * 5 + np.arange(K)[None, None, :]


def bfloat16():
    t = h5py.h5t.IEEE_F32LE.copy()
    t.set_fields(15, 7, 8, 0, 7)
    t.set_precision(16)
    t.set_offset(0)
    t.set_size(2)
    t.set_ebias(127)
    return t


def tensor(group, path, values, dtype, type_=None):
    *groups, name = path.split('/')
    for part in groups:
        group = group.require_group(part)
    props = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    props.set_layout(h5py.h5d.CONTIGUOUS)
    props.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    props.set_obj_track_times(False)
    type_ = type_ or h5py.h5t.py_create(values.dtype, logical=True)
    d = h5py.h5d.create(group.id, name.encode(), type_, h5py.h5s.create_simple(values.shape), props)
    d.write(h5py.h5s.ALL, h5py.h5s.ALL, values, type_)
    h5py.Dataset(d).attrs['dtype'] = np.bytes_(dtype)


def write(path, layout):
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    create = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    f = h5py.File(h5py.h5f.create(path.encode(), h5py.h5f.ACC_TRUNC, create, access))
    f.attrs['table'] = True
    f.attrs['format'] = np.bytes_('mascon')
    f.attrs['format_version'] = np.int64(1)
    f.attrs['mascon_version'] = np.bytes_('0')
    f.attrs['step'] = np.int64(9)
    f.attrs['rate'] = np.float64(0.25)
    f.attrs['name'] = np.bytes_('abc')
    model = f.create_group('model')
    model.attrs['table'] = True
    layer = model.require_group('up')
    layer.attrs['type'] = np.bytes_('GroupedLinear')
    for name, value in {'num_gemms': G, 'in_features': K, 'out_features': N}.items():
        layer.attrs[name] = np.int64(value)
    layer.attrs['weight_layout'] = layer.attrs['bias_layout'] = np.bytes_(layout)
    bits = (weight.astype('<f4').view('<u4') >> 16).astype('<u2')
    bias = np.ascontiguousarray(bits[:, :, 0])
    if layout == 'single':
        tensor(model, 'up/weight', bits, 'bfloat16', bfloat16())
        tensor(model, 'up/bias', bias, 'bfloat16', bfloat16())
    else:
        for i in range(G):
            tensor(model, f'up/weight{i}', bits[i], 'bfloat16', bfloat16())
            tensor(model, f'up/bias{i}', bias[i], 'bfloat16', bfloat16())
    tensor(f, '#7', np.array([True, False]), 'bool')
    tensor(f, 'text', np.frombuffer(b'long ' * 300, 'u1'), 'uint8')
    f['text'].attrs['kind'] = np.bytes_('text')
    f.close()


for layout in ('single', 'per_expert'):
    write(f'{sys.argv[1]}/{layout}.h5', layout)
PYTHON
cat >"$folder/read.lua" <<'LUA'
local mc = require "mascon"
local file = require("mascon.checkpoint.hdf5").open(arg[1])
assert(file.own, "it does not count as a file of mascon's own")
file:close()
for _, layout in ipairs{"single", "per_expert"} do
  local Net = mc.nn.Module:extend "Net"
  function Net:init()
    local single = layout == "single"
    self.up = mc.nn.GroupedLinear{num_gemms = 12, in_features = 5, out_features = 3, params_dtype = "bfloat16",
      single_grouped_weight = single, single_grouped_bias = single}
  end
  local net = Net()
  local report = mc.checkpoint.load_into(arg[1], {model = net})
  assert(#report.missing == 0 and #report.unexpected == 0)
  local weight, bias = net.up.weight:detach():to("float32"), net.up.bias:detach():to("float32")
  for i, v in ipairs(weight:view(-1):totable()) do
    assert(v == math.floor((i - 1) / 15) * 16 + (i - 1) % 15, i)
  end
  for i, v in ipairs(bias:view(-1):totable()) do assert(v == math.floor((i - 1) / 3) * 16 + (i - 1) % 3 * 5, i) end
  local rest = report.rest
  assert(rest.step == 9 and rest.rate == 0.25 and rest.name == "abc" and rest.text == ("long "):rep(300))
  local flags = rest[7]:totable()
  assert(rest[7].dtype == "bool" and flags[1] and not flags[2])
end
LUA
"$python" "$folder/write.py" "$folder"
for layout in single per_expert; do
    "$mascon" "$folder/read.lua" "$folder/$layout.h5"
    "$mascon" inspect "$folder/$layout.h5" | grep -q "of 12 experts, weight $layout, bias $layout"
    for other in single per_expert; do
        "$mascon" convert "$folder/$layout.h5" "$folder/new.h5" --layout $other --views --force --quiet
        "$mascon" verify "$folder/new.h5" | grep -q ': ok, '
        "$mascon" diff "$folder/$layout.h5" "$folder/new.h5" >/dev/null
    done
done
echo 'ok'
