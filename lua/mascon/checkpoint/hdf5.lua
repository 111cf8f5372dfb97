--- HDF5 files as objects, over the mc_h5_* calls of the core: a writer and a reader.
--
-- Knows names and attributes but not what they mean; that is format.lua's. Positions are 0-based
-- elements, as in C. A writer's file becomes visible at commit, whole, or never.
local args = require "mascon.args"
local ffi = require "ffi"
local lib = require "mascon.lib"
local create = require "mascon.create"
local tensor = require "mascon.tensor"

local C, check = lib.C, lib.check

local EXACT = 2 ^ 53 -- integers up to here are exact in a Lua number
local EXACT_INT = ffi.cast("int64_t", EXACT)

local M = {}

--- Raises unless `path` can be the name of a file.
function M.check_path(what, path)
  if type(path) ~= "string" or path == "" or path:find("\0", 1, true) then
    args.raise(("%s: wanted a path, got %s"):format(what, args.show(path)))
  end
end

-- ---------------------------------------------------------------- writing

local Writer = {}
Writer.__index = Writer

local writer_out = ffi.new "mc_h5_writer *[1]"

--- Begins a file; nothing is visible at `path` before commit.
function M.create(path)
  check(C.mc_h5_create(writer_out, path))
  local handle = ffi.gc(writer_out[0], C.mc_h5_discard)
  return setmetatable({ handle = handle }, Writer)
end

function Writer:group(path) check(C.mc_h5_group(self.handle, path)) end

--- Remembers a contiguous tensor of any device; its bytes are read at commit.
function Writer:tensor(path, t) check(C.mc_h5_tensor(self.handle, path, t.h), t) end

--- A uint8 dataset [#text] with the bytes of a string.
function Writer:bytes(path, text) check(C.mc_h5_bytes(self.handle, path, text, #text)) end

--- A second name for the dataset at `target`.
function Writer:link(path, target) check(C.mc_h5_link(self.handle, path, target)) end

-- Whether a number is written as int64: integral, exact in a double, and not -0.
local function is_integer(value)
  return value == math.floor(value) and value >= -EXACT and value <= EXACT
    and not (value == 0 and 1 / value < 0)
end
M.is_integer = is_integer

--- An attribute: an int64 for integral numbers up to 2^53, else float64, bool or fixed-size text.
function Writer:attr(path, name, value)
  local handle, kind = self.handle, type(value)
  if kind == "number" and is_integer(value) then
    check(C.mc_h5_attr_int(handle, path, name, value))
  elseif kind == "number" then
    check(C.mc_h5_attr_double(handle, path, name, value))
  elseif kind == "boolean" then
    check(C.mc_h5_attr_bool(handle, path, name, value and 1 or 0))
  else
    check(C.mc_h5_attr_string(handle, path, name, value, #value))
  end
end

--- Writes all bytes, closes, syncs and gives the file its name. On failure there is no new file.
function Writer:commit()
  local handle = ffi.gc(self.handle, nil)
  self.handle = nil
  check(C.mc_h5_commit(handle))
end

--- Removes what has been written so far.
function Writer:discard()
  if self.handle then
    C.mc_h5_discard(ffi.gc(self.handle, nil))
    self.handle = nil
  end
end

-- ---------------------------------------------------------------- reading

local File = {}
File.__index = File

local file_out = ffi.new "mc_h5_file *[1]"

local function attr_value(a)
  if a.kind == C.MC_H5_INT then
    local i = a.i
    if i >= -EXACT_INT and i <= EXACT_INT then return tonumber(i) end
    return i + 0LL -- an int64 cdata: no Lua number holds it
  elseif a.kind == C.MC_H5_DOUBLE then
    return a.d
  elseif a.kind == C.MC_H5_BOOL then
    return a.i ~= 0
  end
  return ffi.string(a.s, a.size)
end

--- Opens a file and lists all of it; no tensor's bytes are read.
-- @treturn File path, and entries: {index (0-based, for read), path, group = bool, dtype = name | nil,
--   shape, offset, bytes, object, problem, attrs = {name = value}} in order, the root group first
function M.open(path)
  check(C.mc_h5_open(file_out, path))
  local handle = ffi.gc(file_out[0], C.mc_h5_close)
  local entries = {}
  for i = 0, tonumber(C.mc_h5_count(handle)) - 1 do
    local e = C.mc_h5_get(handle, i)
    local entry = { index = i, path = ffi.string(e.path), group = e.kind == C.MC_H5_GROUP, attrs = {} }
    if not entry.group then
      entry.dtype = tensor.dtype_name[e.dtype]
      entry.shape = {}
      for axis = 1, e.ndim do entry.shape[axis] = tonumber(e.shape[axis - 1]) end
      entry.offset, entry.bytes = tonumber(e.offset), tonumber(e.bytes)
      entry.object = tonumber(e.object)
      if e.problem ~= nil then entry.problem = ffi.string(e.problem) end
    end
    for k = e.first_attr, e.first_attr + e.n_attrs - 1 do
      local a = C.mc_h5_get_attr(handle, k)
      entry.attrs[ffi.string(a.name)] = attr_value(a)
    end
    entries[i + 1] = entry
  end
  return setmetatable({ handle = handle, path = path, entries = entries }, File)
end

--- Elements [first, first + numel of t) of a dataset into contiguous t of the same dtype, row-major.
function File:read(entry, first, t) check(C.mc_h5_read(self.handle, entry.index, first, t.h), t) end

--- All bytes of a dataset as a string.
function File:text(entry)
  if entry.bytes == 0 then return "" end
  local t = create.empty(entry.bytes, { dtype = "uint8" })
  self:read(entry, 0, t)
  return ffi.string(t:data(), entry.bytes)
end

local digest_out = ffi.new "char[33]"

--- xxh3-128 of a dataset's bytes, 32 hexadecimal digits.
function File:digest(entry)
  check(C.mc_h5_digest(self.handle, entry.index, digest_out))
  return ffi.string(digest_out, 32)
end

function File:close()
  if self.handle then
    C.mc_h5_close(ffi.gc(self.handle, nil))
    self.handle = nil
  end
end

return M
