--- Damaged and hostile files: each is refused with its name, before anything of the model has changed, and soon.
package.path = "tests/faults/?.lua;" .. package.path
local helper = require "helper"
local edit = require "h5edit"
local mc = require "mascon"
local tools = require "tools"
local hdf5 = require "mascon.checkpoint.hdf5"

local folder, path, hurt, text, model, before

local Net = mc.nn.Module:extend "Net"
function Net:init()
  self.first = mc.nn.Linear { in_features = 3, out_features = 5 }
  self.experts = mc.nn.GroupedLinear { num_gemms = 3, in_features = 4, out_features = 2 }
end

local function snapshot(module)
  local list = {}
  for _, slot in ipairs(module:slots()) do list[#list + 1] = slot.tensor:detach():clone() end
  return list
end

local function assert_untouched(what)
  for i, slot in ipairs(model:slots()) do
    assert.is_true(mc.equal(before[i], slot.tensor:detach()), ("%s: %s has changed"):format(what, slot.name))
  end
end

-- Loads a file with these bytes in every way; each way must fail with the file's name and all of `parts`.
local function assert_refused(bytes, what, ...)
  tools.spill(hurt, bytes)
  local errors = {}
  for name, fn in pairs {
    load = function() mc.load(hurt) end,
    load_into = function() mc.checkpoint.load_into(hurt, { model = model }) end,
  } do
    local ok, err = pcall(fn)
    assert.is_false(ok, ("%s: %s went well"):format(what, name))
    for _, part in ipairs { hurt .. ":", ... } do
      assert.is_truthy(tostring(err):find(part, 1, true), ("%s: %s says: %s"):format(what, name, tostring(err)))
    end
    assert.is_falsy(tostring(err):find("lua/mascon/", 1, true), tostring(err))
    errors[#errors + 1] = err
  end
  assert_untouched(what)
  return errors[1]
end

describe("a hostile or damaged file", function()
  setup(function()
    folder = tools.new_folder()
    path, hurt = folder .. "/whole.h5", folder .. "/hurt.h5"
    mc.manual_seed(3)
    mc.save(path, { model = Net():state_dict(), step = 3 })
    text = tools.slurp(path)
    model = Net()
    before = snapshot(model)
  end)
  teardown(function() tools.remove_folder(folder) end)

  it("cut short anywhere is refused, with both lengths", function()
    for percent = 0, 99 do
      local n = math.floor(#text * percent / 100)
      assert_refused(text:sub(1, n), percent .. " %", n >= 48 and "truncated" or "")
    end
    local lengths = ("truncated: %d bytes, it was written with %d"):format(#text - 1, #text)
    assert_refused(text:sub(1, -2), "one byte", lengths)
  end)

  it("with any wrong bit in its first 48 bytes is refused", function()
    for at = 1, 48 do
      for _, bit in ipairs { 1, 8, 128 } do
        local byte = text:byte(at)
        local flipped = byte % (2 * bit) >= bit and byte - bit or byte + bit
        assert_refused(edit.put(text, at, string.char(flipped)), ("byte %d, bit %d"):format(at - 1, bit))
      end
    end
  end)

  it("with a wrong byte in its structure is refused, unless nobody uses that byte", function()
    local payload, unused, used = {}, 0, 0
    local file = hdf5.open(path)
    for _, entry in ipairs(file.entries) do
      if not entry.group and entry.bytes > 0 then
        payload[#payload + 1] = { entry.offset + 1, entry.offset + entry.bytes }
      end
    end
    file:close()
    math.randomseed(11)
    for at = 49, #text, 19 do
      at = math.min(at + math.random(0, 18), #text)
      local free = true
      for _, p in ipairs(payload) do free = free and not (at >= p[1] and at <= p[2]) end
      if free then
        local bytes = edit.put(text, at, string.char((text:byte(at) + math.random(255)) % 256))
        tools.spill(hurt, bytes)
        local ok, report = pcall(mc.checkpoint.verify, hurt)
        if ok then
          unused = unused + 1
          assert.is_true(report.ok, tostring(report))
        else
          used = used + 1
          local refused, err = pcall(mc.checkpoint.load_into, hurt, { model = model })
          assert.is_false(refused)
          assert.equal(err:match "hurt.*", report:match "hurt.*")
          assert.is_truthy(err:find(hurt .. ":", 1, true), err)
          assert_untouched("byte " .. at - 1)
        end
      end
    end
    assert.is_true(used > 100 and unused > 0, ("%d bytes are used, %d are not"):format(used, unused))
  end)

  it("with a wrong byte in a tensor is found by verify, which names the tensor, and not loaded when asked", function()
    local file = hdf5.open(path)
    local found = 0
    for _, entry in ipairs(file.entries) do
      if not entry.group and entry.bytes > 0 then
        found = found + 1
        local at = entry.offset + 1 + found % entry.bytes
        tools.spill(hurt, edit.put(text, at, string.char((text:byte(at) + 1) % 256)))
        local report = mc.checkpoint.verify(hurt)
        assert.is_false(report.ok)
        assert.equal(1, #report.damaged)
        assert.equal(entry.path, report.damaged[1].name)
        local name = entry.path:sub(2):gsub("/", ".")
        helper.raises(name, mc.checkpoint.load_into, hurt, { model = model }, { verify = true })
        helper.raises(hurt .. ":", mc.checkpoint.load_into, hurt, { model = model }, { verify = true })
        assert_untouched(name)
        assert.equal(1 * 256, os.execute("scripts/mascon verify " .. hurt .. " >/dev/null 2>&1"))
      end
    end
    file:close()
    assert.is_true(found >= 4)
  end)

  describe("whose checksums are right", function()
    local space, layout, target, other_layout
    setup(function()
      local _, kinds = edit.object(text, "weight1")
      local _, others = edit.object(text, "weight2")
      space, layout, other_layout, target = kinds.dataspace, kinds.layout, others.layout, kinds
    end)
    local function changed(at, value, n)
      return edit.repair(edit.put(text, at, edit.bytes(value, n)))
    end
    -- dataspace version 2: version, axes, flags, type, then the sizes; layout version 3 or 4, contiguous: version,
    -- class, address, size
    local function dims(value) return changed(space.at + 4, value, 8) end

    it("is taken as it is when nothing was changed", function()
      assert.equal(text, edit.repair(text))
      assert.equal(2, edit.number(text, space.at, 1))
      assert.equal(2, edit.number(text, space.at + 1, 1))
      assert.equal(2, edit.number(text, space.at + 4, 8)) -- [2, 4]
      assert.equal(1, edit.number(text, layout.at + 1, 1))
      assert.equal(32, edit.number(text, layout.at + 10, 8))
    end)

    it("and sizes are made up is refused, however large they are", function()
      for _, size in ipairs { 1, 3, 2 ^ 31, 2 ^ 32, 2 ^ 40, 2 ^ 61, 2 ^ 62, 2 ^ 63, 2 ^ 64 - 2048 } do
        assert_refused(dims(size), ("%.0f rows"):format(size))
      end
      assert_refused(dims(-1LL), "2^64 - 1 rows")
      tools.spill(hurt, dims(0)) -- a legal tensor, but not this one
      helper.raises("model.experts.weight1", mc.checkpoint.load_into, hurt, { model = model })
      assert_untouched "no rows"
      assert_refused(edit.repair(edit.put(text, space.at + 1, "\33")), "33 axes")
    end)

    it("and offsets lead out of it or into another tensor is refused", function()
      local address = layout.at + 2
      for _, offset in ipairs { #text, #text - 31, #text + 4096, 2 ^ 40, 2 ^ 63 } do
        assert_refused(changed(address, offset, 8), ("offset %.0f"):format(offset))
      end
      -- bytes of the structure as a tensor's: no harm, and not its digest
      tools.spill(hurt, changed(address, 48, 8))
      helper.raises("weight1", mc.checkpoint.load_into, hurt, { model = model }, { verify = true })
      assert_untouched "offset 48"
      assert_refused(changed(address, edit.number(text, other_layout.at + 2, 8), 8), "two in one place")
      assert_refused(changed(address, edit.number(text, other_layout.at + 2, 8) + 4, 8), "two that overlap")
      assert_refused(changed(address, -1LL, 8), "no bytes at all")
      assert_refused(changed(layout.at + 10, 2 ^ 50, 8), "a large extent")
      assert_refused(changed(layout.at + 10, 16, 8), "a small extent")
    end)

    it("and the attribute dtype lies is refused, with both types", function()
      local m = target.attributes.dtype
      local at = text:find("float32", m.at, true)
      assert.is_true(at < m.at + m.n)
      assert_refused(edit.repair(edit.put(text, at, "float64")), "dtype", "float64", "float32")
      assert_refused(edit.repair(edit.put(text, at, "flaot32")), "dtype", "flaot32", "float32")
    end)

    it("and a digest is another one's is found by verify", function()
      local m = target.attributes.digest
      local at = m.at + m.n - 32
      assert.is_truthy(text:sub(at, at + 31):match "^%x+$")
      tools.spill(hurt, edit.repair(edit.put(text, at, ("0"):rep(32))))
      local report = mc.checkpoint.verify(hurt)
      assert.same({ false, 1, "/model/experts/weight1" }, { report.ok, #report.damaged, report.damaged[1].name })
      helper.raises("model.experts.weight1", mc.checkpoint.load_into, hurt, { model = model }, { verify = true })
      assert_untouched "digest"
    end)

    it("and a group contains itself, or a tensor is a group, is refused soon", function()
      local began = tools.now()
      local name = text:find("first", 1, true) -- in the link of /model/first
      local links = name + #"first"
      local root = edit.number(text, 37, 8)
      assert_refused(edit.repair(edit.put(text, links, edit.bytes(root, 8))), "a cycle")
      links = text:find("weight1", 1, true) + #"weight1"
      assert_refused(edit.repair(edit.put(text, links, edit.bytes(root, 8))), "a tensor that is the root")
      assert.is_true(tools.now() - began < 10)
    end)
  end)

  it("is told from one that is merely strange: NaN bits of all kinds come back as they were", function()
    local codes = {}
    for i = 0, 65535 do codes[i + 1] = i end
    local all = mc.tensor(codes, { dtype = "int32" })
    local strange = mc.empty(65536, { dtype = "bfloat16", device = "cpu" })
    local ffi = require "ffi"
    local bits = ffi.cast("uint16_t *", strange:data())
    for i = 0, 65535 do bits[i] = i end
    local narrow = mc.empty(256, { dtype = "float8_e4m3fn", device = "cpu" })
    for i = 0, 255 do ffi.cast("uint8_t *", narrow:data())[i] = i end
    mc.save(hurt, { a = strange, b = narrow, c = all, ["key / with . all \1 of it"] = strange })
    local got = mc.load(hurt)
    assert.is_true(mc.equal(strange, got.a) and mc.equal(narrow, got.b) and mc.equal(all, got.c))
    assert.is_true(mc.equal(strange, got["key / with . all \1 of it"]))
  end)

  it("and no NaN payload, nor minus zero, changes on any way between files and layouts", function()
    local ffi = require "ffi"
    local codes = {
      float64 = { "uint64_t", 0x7ff0000000000001ULL, 0xfff8dead00beef01ULL, 0x7ff4000000000123ULL,
        0x8000000000000000ULL },
      float32 = { "uint32_t", 0x7f800001, 0xffdeadbf, 0x7fa00123, 0x80000000 },
      float16 = { "uint16_t", 0x7c01, 0xfe0f, 0x7d23, 0x8000 },
      bfloat16 = { "uint16_t", 0x7f81, 0xffde, 0x7fa1, 0x8000 },
    }
    local function layer(dtype, single)
      return mc.nn.GroupedLinear { num_gemms = 11, in_features = 3, out_features = 2, bias = false,
        params_dtype = dtype, single_grouped_weight = single, device = "cpu" }
    end
    local function raw(t) return ffi.string(t:data(), t:numel() * t:element_size()) end
    local other = folder .. "/other.h5"
    for dtype, list in pairs(codes) do
      for _, stored in ipairs { true, false } do
        local gl = layer(dtype, stored)
        local bits = ffi.cast(list[1] .. " *", gl.weight:data())
        for i = 0, 65 do bits[i] = list[i % 4 + 2] end
        local wanted = raw(gl.weight)
        mc.save(hurt, { model = gl:state_dict() }, { views = true })
        mc.checkpoint.convert(hurt, other, { layout = stored and "per_expert" or "single", overwrite = true })
        assert.is_true(mc.checkpoint.diff(hurt, other).ok)
        for _, file in ipairs { hurt, other } do
          for _, own in ipairs { true, false } do
            local direct, by_table = layer(dtype, own), layer(dtype, own)
            mc.checkpoint.load_into(file, { model = direct })
            by_table:load_state_dict(mc.load(file).model)
            assert.is_true(wanted == raw(direct.weight) and wanted == raw(by_table.weight), dtype)
          end
        end
      end
    end
  end)

  it("with more elements than 64 bits can count is refused, whichever axis is made up", function()
    mc.save(hurt, { stack = mc.ones(3, 2, 4) })
    local whole = tools.slurp(hurt)
    local _, kinds = edit.object(whole, "stack")
    local sizes = kinds.dataspace.at + 4 -- 8 bytes each
    assert.equal(3, edit.number(whole, kinds.dataspace.at + 1, 1))
    assert.equal(3, edit.number(whole, sizes, 8))
    for _, made_up in ipairs { { 2 ^ 31, 2 ^ 31, 4 }, { 2 ^ 62, 2, 4 }, { 3, 2 ^ 62, 4 }, { 3, 2, 2 ^ 62 },
      { 2 ^ 21, 2 ^ 21, 2 ^ 20 }, { 2 ^ 32, 2 ^ 32, 2 ^ 32 }, { 2 ^ 63, 2, 4 }, { 0, 2 ^ 63, 2 ^ 63 } } do
      local bytes = whole
      for axis = 1, 3 do bytes = edit.put(bytes, sizes + 8 * (axis - 1), edit.bytes(made_up[axis], 8)) end
      assert_refused(edit.repair(bytes), ("%.0f x %.0f x %.0f"):format(unpack(made_up)), "'/stack'")
    end
  end)
  it("with JSON that is nested deeply, or far too long, is refused by its name", function()
    local function own(values)
      local writer = hdf5.create(hurt)
      writer:attr("/", "format", "mascon")
      writer:attr("/", "format_version", 1)
      writer:attr("/", "table", true)
      writer:bytes("/#values", values)
      writer:attr("/#values", "kind", "json")
      writer:commit()
      return tools.slurp(hurt)
    end
    assert_refused(own(('{"a":'):rep(3e5) .. "1" .. ("}"):rep(3e5)), "nested JSON",
      "'/#values' is damaged: its JSON is nested too deeply")
    assert_refused(own('{"a": "' .. ("x"):rep(2 ^ 21) .. '"}'), "long JSON",
      "'/#values': more than 2097152 bytes of JSON in one file")
    helper.raises("or in one string", function()
      local many = {}
      for i = 1, 2e5 do many["value " .. i] = i end
      mc.save(hurt, { values = many })
    end)
  end)

  it("with a format_version that is no whole number is refused", function()
    for _, version in ipairs { 0, -1, 1.5, 1 / 0, 0 / 0 } do
      local writer = hdf5.create(hurt)
      writer:attr("/", "format", "mascon")
      writer:attr("/", "format_version", version)
      writer:commit()
      assert_refused(tools.slurp(hurt), "a version", "damaged: its format_version is ")
    end
  end)
end)
