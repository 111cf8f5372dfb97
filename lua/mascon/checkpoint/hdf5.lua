--- HDF5 files as objects, over the mc_h5_* calls of the core: a writer and a reader.
--
-- Knows names and attributes but not what they mean; that is format.lua's. Positions are 0-based
-- elements, as in C. A writer's file becomes visible at commit, whole, or never. A writer keeps alive what
-- C borrows: the tensors and files that it was given, until the commit is through.
local args = require "mascon.args"
local ffi = require "ffi"
local lib = require "mascon.lib"
local new_table = require "table.new"
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

-- Writers whose threads run: the collector must take neither them nor what their threads read.
local running = {}

local writer_out = ffi.new "mc_h5_writer *[1]"
local index_out = ffi.new "int64_t[1]"
local done_out, total_out = ffi.new "int64_t[1]", ffi.new "int64_t[1]"
local dims_in = ffi.new "int64_t[8]"

--- Begins a file; nothing is visible at `path` before commit.
-- @tparam string path
-- @tparam table|nil opts resume_key: what is written lasts beside the file ("<path>.partial"), and a later
--   writer with the same key, given the same calls, goes on where this one was killed
function M.create(path, opts)
  local key = opts and opts.resume_key
  if key then
    check(C.mc_h5_create_resumable(writer_out, path, key))
  else
    check(C.mc_h5_create(writer_out, path))
  end
  local handle = ffi.gc(writer_out[0], C.mc_h5_discard)
  return setmetatable({ handle = handle, path = path, tensors = {}, files = {} }, Writer)
end

--- Removes what dead writers of `path` left beside it; returns how many files that were.
function M.sweep(path)
  check(C.mc_h5_sweep(path, index_out))
  return tonumber(index_out[0])
end

function Writer:group(path) check(C.mc_h5_group(self.handle, path)) end

--- Remembers a contiguous tensor of any device; its bytes are read at commit.
function Writer:tensor(path, t)
  self.tensors[#self.tensors + 1] = t
  check(C.mc_h5_tensor(self.handle, path, t.h), t)
end

--- A uint8 dataset [#text] with the bytes of a string.
function Writer:bytes(path, text) check(C.mc_h5_bytes(self.handle, path, text, #text)) end

--- A dataset whose elements come in parts.
-- @tparam string path
-- @tparam string dtype
-- @tparam {int,...} shape
-- @treturn int its index, for part and part_file
function Writer:dataset(path, dtype, shape)
  if #shape > 8 then args.raise(("%s: '%s' has %d axes, at most 8 are wanted"):format(self.path, path, #shape)) end
  for axis = 1, #shape do dims_in[axis - 1] = shape[axis] end
  check(C.mc_h5_dataset(self.handle, path, tensor.parse_dtype("dataset", dtype), #shape, dims_in, index_out))
  return tonumber(index_out[0])
end

--- The next elements of dataset `index`: those of a contiguous tensor of its dtype, written at once.
function Writer:part(index, t) check(C.mc_h5_part(self.handle, index, t.h), t) end

--- The next n elements of dataset `index`: elements [first, first + n) of an entry of an open file, copied at commit.
function Writer:part_file(index, file, entry, first, n)
  self.files[file] = true
  check(C.mc_h5_part_file(self.handle, index, file.handle, entry.index, first, n))
end

--- A second name for the dataset at `target`.
function Writer:link(path, target) check(C.mc_h5_link(self.handle, path, target)) end

--- A virtual dataset [#sources, ...] over datasets of one dtype and shape that were made before.
function Writer:view_stack(path, sources)
  local list = ffi.new("const char *[?]", #sources)
  for i, source in ipairs(sources) do list[i - 1] = source end
  check(C.mc_h5_view_stack(self.handle, path, #sources, list))
end

--- A virtual dataset over source[position], 0-based along its first axis.
function Writer:view_select(path, source, position)
  check(C.mc_h5_view_select(self.handle, path, source, position))
end

-- Whether a number is written as int64: integral, exact in a double, and not -0.
local function is_integer(value)
  return value == math.floor(value) and value >= -EXACT and value <= EXACT
    and not (value == 0 and 1 / value < 0)
end
M.is_integer = is_integer

--- An attribute: an int64 for integral numbers up to 2^53 and for int64 cdata, else float64, bool or fixed-size text.
function Writer:attr(path, name, value)
  local handle, kind = self.handle, type(value)
  if kind == "number" and is_integer(value) or kind == "cdata" then
    check(C.mc_h5_attr_int(handle, path, name, value))
  elseif kind == "number" then
    check(C.mc_h5_attr_double(handle, path, name, value))
  elseif kind == "boolean" then
    check(C.mc_h5_attr_bool(handle, path, name, value and 1 or 0))
  else
    check(C.mc_h5_attr_string(handle, path, name, value, #value))
  end
end

--- At commit, before the file has its name: everything is read back from the disk and compared.
function Writer:check_written() check(C.mc_h5_check_written(self.handle)) end

--- At commit, once the file has its name: `pointer` is replaced by a file that holds `text`, as durably.
function Writer:then_point(pointer, text) check(C.mc_h5_then_point(self.handle, pointer, text)) end

--- At commit, after the pointer: the file `path` is removed; one that is not there is fine.
function Writer:then_remove(path) check(C.mc_h5_then_remove(self.handle, path)) end

-- The C handle, which the caller's next call frees.
local function taken(self)
  local handle = ffi.gc(self.handle, nil)
  self.handle = nil
  return handle
end

--- Writes all bytes, closes, syncs and gives the file its name. On failure there is no new file.
function Writer:commit()
  check(C.mc_h5_commit(taken(self)))
end

--- The same on a thread of its own; wait, in the end, gives the result.
-- @tparam bool snapshot copies the tensors first, so that they may change at once; else they must stay as they are
function Writer:start(snapshot)
  local handle = taken(self)
  check(C.mc_h5_commit_start(handle, snapshot and 1 or 0))
  self.handle = handle -- without a finalizer: only wait may free it now
  if snapshot then self.tensors = {} end
  running[self] = true
end

--- After start: whether the thread is through, the bytes done, and those to do.
function Writer:poll()
  local finished = C.mc_h5_commit_poll(self.handle, done_out, total_out) ~= 0
  return finished, tonumber(done_out[0]), tonumber(total_out[0])
end

--- After start: waits for the thread.
-- @treturn string|nil what it failed with
-- @treturn int|nil the status of that
function Writer:finish()
  local handle = self.handle
  self.handle, running[self] = nil, nil
  local status = C.mc_h5_commit_wait(handle)
  if status ~= 0 then return ffi.string(C.mc_last_error()), status end
end

--- After start: waits for the thread and raises what it failed with.
function Writer:wait()
  local failure, status = self:finish()
  if failure then
    lib.last_status = status
    args.raise(failure)
  end
end

--- Removes what has been written so far; nothing once a commit was begun.
function Writer:discard()
  if self.handle and not running[self] then C.mc_h5_discard(taken(self)) end
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

local NO_ATTRS = {} -- of all entries without any; entries are never written to

local function attrs_of(handle, e)
  if e.n_attrs == 0 then return NO_ATTRS end
  local attrs = new_table(0, e.n_attrs)
  for k = e.first_attr, e.first_attr + e.n_attrs - 1 do
    local a = C.mc_h5_get_attr(handle, k)
    attrs[ffi.string(a.name)] = attr_value(a)
  end
  return attrs
end

-- Entry i of an open file as a table. A listing has a million of them at most, and what they take of memory is bounded
-- in C by MCI_COST_* (scan.h), which stands for what is made here. objects: the first entry of each dataset, and,
-- once it has a second link, the metatable through which its links share all but their names.
local function entry_at(handle, i, objects)
  local e = C.mc_h5_get(handle, i)
  local kind = e.kind
  if kind == C.MC_H5_GROUP then
    return { index = i, path = ffi.string(e.path), group = true, attrs = attrs_of(handle, e) }
  end
  local object = tonumber(e.object)
  local first = objects[object]
  if first then
    if not first.__index then
      first = { __index = first }
      objects[object] = first
    end
    return setmetatable({ index = i, path = ffi.string(e.path) }, first)
  end
  local shape = new_table(e.ndim, 0)
  for axis = 1, e.ndim do shape[axis] = tonumber(e.shape[axis - 1]) end
  -- eight fields fit a table of half the size that nine need
  local entry = { index = i, path = ffi.string(e.path), attrs = attrs_of(handle, e),
    dtype = tensor.dtype_name[e.dtype], shape = shape, offset = tonumber(e.offset), bytes = tonumber(e.bytes),
    object = object }
  if e.problem ~= nil then entry.problem = ffi.string(e.problem) end
  if kind == C.MC_H5_VIEW then entry.view = true end
  objects[object] = entry
  return entry
end

--- Opens a file and lists all of it; no tensor's bytes are read.
-- @tparam string path
-- @tparam table|nil opts prefetch = true: reading into the page cache begins at once; decode_limit: bytes that
--   compressed datasets may decode to; seconds: that the listing may take
-- @treturn File path, own = whether it is of mascon's own dialect, and entries: {index (0-based, for read), path,
--   group = true | nil, view = true | nil, dtype = name | nil, shape, offset, bytes, object, problem, attrs =
--   {name = value}} in order, the root group first; links on one dataset share what they have in common: read only
function M.open(path, opts)
  local options
  if opts then
    options = ffi.new "mc_h5_open_options"
    options.size = ffi.sizeof(options)
    options.prefetch = opts.prefetch and 1 or 0
    options.decode_limit, options.seconds = opts.decode_limit or 0, opts.seconds or 0
  end
  check(C.mc_h5_open(file_out, path, options))
  local handle = ffi.gc(file_out[0], C.mc_h5_close)
  local n, objects = tonumber(C.mc_h5_count(handle)), {}
  local entries = new_table(n, 0)
  for i = 0, n - 1 do entries[i + 1] = entry_at(handle, i, objects) end
  return setmetatable({ handle = handle, path = path, own = C.mc_h5_is_own(handle) ~= 0, entries = entries }, File)
end

--- Elements [first, first + numel of t) of a dataset into contiguous t of the same dtype, row-major.
function File:read(entry, first, t) check(C.mc_h5_read(self.handle, entry.index, first, t.h), t) end

--- The first n of a C array of mc_h5_stretch, all at once; pieces.batch makes such lists.
function File:read_many(list, n) check(C.mc_h5_read_many(self.handle, list, n)) end

--- All bytes of a dataset as a string.
function File:text(entry)
  if entry.bytes == 0 then return "" end
  local t = create.empty(entry.bytes, { dtype = "uint8", device = "cpu" })
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
