--- What the specs of conversions share: coded tensors, files of other people, a layer with its optimizer.
local hdf5 = require "mascon.checkpoint.hdf5"
local lfs = require "lfs"
local mc = require "mascon"

local M = {}

local G = 12 -- weight10 comes after weight9
M.G = G

--- The bytes of a file.
function M.read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read("*a")
  file:close()
  return text
end

--- expert * 10000 + row * 100 + column + shift
function M.coded(shape, expert, shift)
  local t = mc.zeros(shape)
  local columns = shape[#shape]
  local flat = {}
  for i = 0, t:numel() - 1 do
    flat[i + 1] = expert * 10000 + math.floor(i / columns) * 100 + i % columns + (shift or 0)
  end
  return mc.tensor(flat):view(shape)
end

--- The experts 0 .. G - 1 of M.coded as one.
function M.stack(shape, shift)
  local list = {}
  for i = 0, G - 1 do list[i + 1] = M.coded(shape, i, shift) end
  return mc.stack(list, 1)
end

--- A plain HDF5 file that says nothing about layers: entries {path, tensor}, attributes {path, name, value}.
function M.foreign(path, entries, attributes)
  local writer = hdf5.create(path)
  for _, entry in ipairs(entries) do writer:tensor(entry[1], entry[2]) end
  for _, attr in ipairs(attributes or {}) do
    writer:group(attr[1])
    writer:attr(unpack(attr))
  end
  writer:commit()
end

--- A grouped layer with coded values and its AdamW state after some steps.
function M.layer_object(layout, K, N, bias)
  local gl = mc.nn.GroupedLinear { num_gemms = G, in_features = K, out_features = N, bias = bias,
    single_grouped_weight = layout == "single", single_grouped_bias = bias and layout == "single" }
  mc.no_grad(function()
    gl.weight:copy_(M.stack { N, K })
    if bias then gl.bias:copy_(M.stack({ N }, 0.5)) end
  end)
  local opt = mc.optim.AdamW { params = gl, lr = 0.1 }
  return { model = { layers = { [1] = gl:state_dict() }, ["norm.weight"] = mc.ones(3, { dtype = "bfloat16" }) },
    optimizer = opt:state_dict(), step = 7, note = ("a text "):rep(300), tokens = { "one", "two" }, nothing = {} }
end

--- What a folder has beside files of names in .h5.
function M.leftovers(folder)
  local found = {}
  for name in lfs.dir(folder) do
    if name ~= "." and name ~= ".." and not name:find "%.h5$" then found[#found + 1] = name end
  end
  return found
end

return M
