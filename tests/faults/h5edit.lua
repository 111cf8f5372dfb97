--- Edits HDF5 files of mascon's dialect by hand, as an attacker would: changes bytes of object headers and makes the
-- checksums right again.
--
-- Knows superblock version 3 and object headers of version 2 (signature OHDR: version, flags, sizes by flags,
-- messages, lookup3), which hold everything up to 8 links or attributes. Positions are 1-based, as in Lua strings.
local bit = require "bit"
local ffi = require "ffi"

local band, bor, bxor, lshift, rol, tobit = bit.band, bit.bor, bit.bxor, bit.lshift, bit.rol, bit.tobit

local M = {}

--- The little-endian number of n bytes at `at`.
local function number(text, at, n)
  local value = 0
  for i = n - 1, 0, -1 do value = value * 256 + text:byte(at + i) end
  return value
end
M.number = number

--- n bytes of a number, int64 cdata too.
local function bytes(value, n)
  local cell = ffi.new("uint64_t[1]", value)
  return ffi.string(cell, n)
end
M.bytes = bytes

-- Words of 4 bytes, 0 past the end.
local function word(text, at, last)
  local value = 0
  for i = 0, 3 do
    if at + i <= last then value = bor(value, lshift(text:byte(at + i), 8 * i)) end
  end
  return value
end

--- Bob Jenkins' lookup3 of text[first .. last], initial value 0, as 4 bytes.
local function lookup3(text, first, last)
  local n, at = last - first + 1, first
  local a = tobit(0xdeadbeef + n)
  local b, c = a, a
  while n > 12 do
    a, b, c = tobit(a + word(text, at, last)), tobit(b + word(text, at + 4, last)), tobit(c + word(text, at + 8, last))
    a = bxor(tobit(a - c), rol(c, 4))
    c = tobit(c + b)
    b = bxor(tobit(b - a), rol(a, 6))
    a = tobit(a + c)
    c = bxor(tobit(c - b), rol(b, 8))
    b = tobit(b + a)
    a = bxor(tobit(a - c), rol(c, 16))
    c = tobit(c + b)
    b = bxor(tobit(b - a), rol(a, 19))
    a = tobit(a + c)
    c = bxor(tobit(c - b), rol(b, 4))
    b = tobit(b + a)
    at, n = at + 12, n - 12
  end
  a, b, c = tobit(a + word(text, at, last)), tobit(b + word(text, at + 4, last)), tobit(c + word(text, at + 8, last))
  c = tobit(bxor(c, b) - rol(b, 14))
  a = tobit(bxor(a, c) - rol(c, 11))
  b = tobit(bxor(b, a) - rol(a, 25))
  c = tobit(bxor(c, b) - rol(b, 16))
  a = tobit(bxor(a, c) - rol(c, 4))
  b = tobit(bxor(b, a) - rol(a, 14))
  c = tobit(bxor(c, b) - rol(b, 24))
  return ffi.string(ffi.new("int32_t[1]", c), 4)
end

--- text with `new` in the place of as many bytes at `at`.
local function put(text, at, new) return text:sub(1, at - 1) .. new .. text:sub(at + #new) end
M.put = put

local MESSAGES = { [1] = "dataspace", [2] = "link info", [3] = "datatype", [5] = "fill", [6] = "link", [8] = "layout",
  [10] = "group info", [11] = "filters", [12] = "attribute", [16] = "continuation", [21] = "attribute info" }

-- Messages in text[at .. last], into list.
local function messages(text, at, last, head, list)
  while at + head <= last do
    local kind, n = text:byte(at), number(text, at + 1, 2)
    if at + head + n - 1 > last then return end
    list[#list + 1] = { kind = MESSAGES[kind] or kind, head = at, at = at + head, n = n }
    at = at + head + n
  end
end

--- All object headers of a file: list of {at, last = of what its checksum covers, messages = list of {kind, head, at,
-- n}}; parts of a header elsewhere (OCHK) are entries of their own.
function M.headers(text)
  local list, lengths = {}, {}
  local heads = {}
  for at in text:gmatch "()OHDR\2" do heads[#heads + 1] = at end
  for _, at in ipairs(heads) do
    local flags = text:byte(at + 5)
    local from = at + 6 + (band(flags, 32) ~= 0 and 16 or 0) + (band(flags, 16) ~= 0 and 4 or 0)
    local width = lshift(1, band(flags, 3))
    local n = number(text, from, width)
    local last = from + width + n - 1
    local head = band(flags, 4) ~= 0 and 6 or 4
    if last + 4 <= #text then
      local header = { at = at, last = last, messages = {} }
      messages(text, from + width, last, head, header.messages)
      list[#list + 1] = header
      for _, m in ipairs(header.messages) do
        if m.kind == "continuation" and m.n >= 16 then
          lengths[number(text, m.at, 8) + 1] = { n = number(text, m.at + 8, 8), head = head }
        end
      end
    end
  end
  for at, part in pairs(lengths) do
    if at + part.n - 1 <= #text and text:sub(at, at + 3) == "OCHK" then
      local header = { at = at, last = at + part.n - 5, messages = {} }
      messages(text, at + 4, header.last, part.head, header.messages)
      list[#list + 1] = header
    end
  end
  table.sort(list, function(a, b) return a.at < b.at end)
  return list
end

--- The header of the object that a link named `name` leads to, and its messages by kind (the first of each; attributes
-- by their names).
function M.object(text, name)
  local headers, address = M.headers(text), nil
  for _, header in ipairs(headers) do
    for _, m in ipairs(header.messages) do
      local at = m.kind == "link" and text:sub(m.at, m.at + m.n - 1):find(name, 1, true)
      if at and at + #name + 7 == m.n then address = number(text, m.at + at - 1 + #name, 8) end
    end
  end
  for _, header in ipairs(headers) do
    if header.at - 1 == address then
      local kinds = { attributes = {} }
      for _, m in ipairs(header.messages) do
        kinds[m.kind] = kinds[m.kind] or m
        if m.kind == "attribute" then -- version 3: sizes of name, type, space at 3, 5, 7; the name at 10
          local length = number(text, m.at + 2, 2)
          kinds.attributes[text:sub(m.at + 9, m.at + 9 + length - 2)] = m
        end
      end
      return header, kinds
    end
  end
  error("h5edit: no object is called " .. name, 2)
end

--- The file with the checksums of its superblock and of the given headers (default: all) made right. end_of_file =
-- true: its length, too.
function M.repair(text, headers, end_of_file)
  if end_of_file then text = put(text, 29, bytes(#text, 8)) end
  text = put(text, 45, lookup3(text, 1, 44))
  for _, header in ipairs(headers or M.headers(text)) do
    text = put(text, header.last + 1, lookup3(text, header.at, header.last))
  end
  return text
end

return M
