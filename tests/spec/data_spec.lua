-- mc.data: files as tensors, cutting, windows and the King James text.
local lfs = require "lfs"
local mc = require "mascon"
local data = require "mascon.data"

local function write(path, text)
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
end

local function read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read("*a")
  file:close()
  return text
end

-- 0, 1, 2, ...: a token tells its own position.
local function counting(n, dtype)
  return mc.arange(n, { dtype = dtype or "int32" })
end

describe("data.bytes", function()
  it("gives every byte value of a file in order", function()
    local path, all = os.tmpname(), {}
    for i = 0, 255 do all[#all + 1] = string.char(i) end
    write(path, table.concat(all))
    local t = data.bytes(path)
    os.remove(path)
    assert.equal("uint8", t.dtype)
    assert.is_true(mc.equal(t, counting(256, "uint8")))
  end)

  it("gives an empty tensor for an empty file", function()
    local path = os.tmpname()
    assert.same({ 0 }, data.bytes(path):shape())
    os.remove(path)
  end)

  it("names the file that is missing or a folder", function()
    assert.error_matches(function() data.bytes("/nowhere/text") end,
      "data.bytes: /nowhere/text: No such file or directory")
    assert.error_matches(function() data.bytes("/tmp") end, "data.bytes: /tmp: Is a directory")
    assert.error_matches(function() data.bytes(nil) end, "data.bytes: wanted a path, got nil")
  end)
end)

describe("data.split", function()
  it("cuts after floor(n * fraction) without copying", function()
    local t = counting(11)
    local a, b = data.split(t, 0.9)
    assert.equal(9, a:numel())
    assert.equal(2, b:numel())
    assert.same({ 9, 10 }, b:totable())
    assert.equal(t:storage_id(), a:storage_id())
    assert.equal(t:storage_id(), b:storage_id())
  end)

  it("may leave a part empty", function()
    local a, b = data.split(counting(1), 0.5)
    assert.equal(0, a:numel())
    assert.equal(1, b:numel())
  end)

  it("rejects a fraction that is not between 0 and 1", function()
    for _, fraction in ipairs{ 0, 1, -0.5, 90, 0 / 0 } do
      assert.error_matches(function() data.split(counting(3), fraction) end,
        "data.split: wanted a fraction between 0 and 1, got ")
    end
    assert.error_matches(function() data.split({ 1 }, 0.5) end, "data.split: wanted a tensor")
  end)
end)

describe("Windows", function()
  it("gives x and y as int32, y one token further on, inside the data", function()
    for _, dtype in ipairs{ "uint8", "int32", "int64" } do
      local loader = data.Windows{ data = counting(50, dtype), length = 7, batch_size = 5, seed = 3 }
      for _ = 1, 20 do
        local x, y = loader:next()
        assert.equal("int32", x.dtype)
        assert.equal("int32", y.dtype)
        assert.same({ 5, 7 }, x:shape())
        local tx, ty = x:totable(), y:totable()
        for b = 1, 5 do
          for i = 1, 7 do
            assert.equal(tx[b][1] + i - 1, tx[b][i])
            assert.equal(tx[b][i] + 1, ty[b][i])
          end
          assert.is_true(tx[b][1] >= 0 and ty[b][7] < 50)
        end
      end
    end
  end)

  it("reaches the first and the last window", function()
    local loader = data.Windows{ data = counting(10), length = 7, batch_size = 4, seed = 1 }
    local seen = {}
    for _ = 1, 50 do
      for _, row in ipairs((loader:next()):totable()) do seen[row[1]] = true end
    end
    assert.same({ [0] = true, [1] = true, [2] = true }, seen)
  end)

  it("takes data that holds just one window", function()
    local loader = data.Windows{ data = counting(8), length = 7, batch_size = 1 }
    local x, y = loader:next()
    assert.same({ { 0, 1, 2, 3, 4, 5, 6 } }, x:totable())
    assert.same({ { 1, 2, 3, 4, 5, 6, 7 } }, y:totable())
  end)

  it("goes on after load_state_dict as if it had never stopped", function()
    local text = counting(10000)
    local one = data.Windows{ data = text, length = 5, batch_size = 6, seed = 11 }
    for _ = 1, 9 do one:next() end
    local state = one:state_dict()
    assert.same({ seed = 11, step = 9 }, state)
    local two = data.Windows{ data = text, length = 5, batch_size = 6, seed = 12 }
    two:next()
    two:load_state_dict(state)
    for _ = 1, 5 do
      local xa, ya = one:next()
      local xb, yb = two:next()
      assert.is_true(mc.equal(xa, xb))
      assert.is_true(mc.equal(ya, yb))
    end
  end)

  it("gives other windows for another seed and for another step", function()
    local text = counting(100000)
    local a = data.Windows{ data = text, length = 3, batch_size = 8, seed = 1 }
    local b = data.Windows{ data = text, length = 3, batch_size = 8, seed = 2 }
    local first = a:next()
    assert.is_false(mc.equal(first, (b:next())))
    assert.is_false(mc.equal(first, (a:next())))
  end)

  it("neither reads nor moves the library's own generator", function()
    local text = counting(1000)
    mc.manual_seed(5)
    local before = mc.get_rng_state()
    local x = data.Windows{ data = text, length = 3, batch_size = 8, seed = 5 }:next()
    assert.is_true(mc.equal(before, mc.get_rng_state()))
    mc.manual_seed(6)
    assert.is_true(mc.equal(x, (data.Windows{ data = text, length = 3, batch_size = 8, seed = 5 }:next())))
  end)

  it("keeps its data through mc.scope", function()
    local loader
    mc.scope(function()
      loader = data.Windows{ data = counting(100), length = 3, batch_size = 2 }
    end)
    assert.same({ 2, 3 }, (loader:next()):shape())
  end)

  it("rejects data that is too short, of another dtype or shape, and unknown options", function()
    assert.error_matches(function() data.Windows{ data = counting(7), length = 7 } end,
      "Windows: data has 7 tokens, wanted more than the length, 7")
    assert.error_matches(function() data.Windows{ data = mc.zeros(300) } end,
      "Windows: data is float32, wanted uint8, int32 or int64")
    assert.error_matches(function() data.Windows{ data = mc.zeros(30, 30, { dtype = "int32" }) } end,
      "Windows: data is %[30, 30%], wanted one contiguous row")
    assert.error_matches(function() data.Windows{ data = { 1, 2 } } end, "Windows: wanted a tensor, got a table")
    assert.error_matches(function() data.Windows{ data = counting(300), size = 3 } end, "unknown option size")
    assert.error_matches(function() data.Windows{ data = counting(300), length = 0 } end, "option length is 0")
    assert.error_matches(function() data.Windows{} end, "option data is missing, wanted a tensor of tokens")
  end)

  it("changes nothing when a state is wrong", function()
    local loader = data.Windows{ data = counting(300), seed = 4 }
    loader:next()
    assert.error_matches(function() loader:load_state_dict{ seed = 9 } end, "option step is missing")
    assert.error_matches(function() loader:load_state_dict{ seed = 9, step = -1 } end, "option step is %-1")
    assert.same({ seed = 4, step = 1 }, loader:state_dict())
  end)
end)

describe("windows_in_order", function()
  -- The targets in the order given, and the shapes.
  local function collect(n, length, batch_size)
    local targets, shapes = {}, {}
    for x, y in data.windows_in_order(counting(n), length, batch_size) do
      shapes[#shapes + 1] = table.concat(x:shape(), "x")
      local tx = x:totable()
      for b, row in ipairs(y:totable()) do
        for i, token in ipairs(row) do
          assert.equal(token - 1, tx[b][i])
          targets[#targets + 1] = token
        end
      end
    end
    return targets, table.concat(shapes, " ")
  end

  it("gives every token but the first as a target exactly once, in order", function()
    for _, n in ipairs{ 2, 4, 5, 6, 9, 16, 17, 18, 31 } do
      for _, batch_size in ipairs{ 1, 2, 3 } do
        local targets = collect(n, 4, batch_size)
        assert.equal(n - 1, #targets)
        for i, token in ipairs(targets) do assert.equal(i, token) end
      end
    end
  end)

  it("gives full batches, then what is left of them, then one short window", function()
    local _, shapes = collect(1 + 4 * 5 + 3, 4, 2)
    assert.equal("2x4 2x4 1x4 1x3", shapes)
    _, shapes = collect(1 + 4 * 4, 4, 2)
    assert.equal("2x4 2x4", shapes)
  end)

  it("gives nothing for one token or none", function()
    assert.same({}, (collect(1, 4, 2)))
    assert.same({}, (collect(0, 4, 2)))
  end)

  it("rejects a length of 0 and a bad batch size", function()
    assert.error_matches(function() data.windows_in_order(counting(9), 0) end, "length: 0 is out of range")
    assert.error_matches(function() data.windows_in_order(counting(9), 4, 1.5) end, "batch_size: wanted an integer")
  end)
end)

describe("data.kjv", function()
  local cache
  before_each(function()
    cache = os.tmpname()
    os.remove(cache)
  end)
  after_each(function() os.execute("rm -rf " .. cache) end)

  -- Runs data.kjv in a process of its own with `cache` as the cache; returns status, stdout, stderr.
  local function kjv(path)
    local script, out, err = cache .. ".lua", cache .. ".out", cache .. ".err"
    write(script, 'io.write(require("mascon").data.kjv())')
    local status = os.execute(("XDG_CACHE_HOME=%s %s scripts/mascon %s >%s 2>%s"):format(
      cache, path and "PATH=" .. path or "", script, out, err))
    local stdout, stderr = read(out), read(err)
    for _, name in ipairs{ script, out, err } do os.remove(name) end
    return status / 256, stdout, stderr
  end

  local function have_bible()
    return os.execute("command -v bible >/dev/null") == 0
  end

  it("extracts the text once, whole, without a warning", function()
    if not have_bible() then return pending("bible-kjv is not installed") end
    local status, out, err = kjv()
    assert.equal(0, status, err)
    assert.equal("", err)
    assert.equal(cache .. "/mascon/kjv.txt", out)
    assert.equal(4404412, lfs.attributes(out, "size"))
    local changed = lfs.attributes(out, "modification")
    local files = 0
    for name in lfs.dir(cache .. "/mascon") do
      if name:sub(1, 1) ~= "." then files = files + 1 end
    end
    assert.equal(1, files)
    assert.equal(0, (kjv()))
    assert.equal(changed, lfs.attributes(out, "modification"))
  end)

  it("warns about another text and goes on", function()
    os.execute("mkdir -p " .. cache .. "/mascon")
    write(cache .. "/mascon/kjv.txt", "In the beginning\n")
    local status, out, err = kjv()
    assert.equal(0, status)
    assert.equal(cache .. "/mascon/kjv.txt", out)
    assert.matches("data.kjv: warning: .-/kjv.txt has sha256 %x+, not cd45f0c9", err)
  end)

  it("names the package when the program is missing", function()
    local bin = cache .. ".bin"
    os.execute(("mkdir %s; for t in sh env dirname readlink luajit; do ln -s $(command -v $t) %s; done"):format(
      bin, bin))
    local status, _, err = kjv(bin)
    os.execute("rm -rf " .. bin)
    assert.equal(1, status)
    assert.matches("data.kjv: the program bible is missing: apt%-get install bible%-kjv", err)
    assert.is_nil(lfs.attributes(cache .. "/mascon/kjv.txt"))
  end)

  it("says so when the cache cannot be written", function()
    if not have_bible() then return pending("bible-kjv is not installed") end
    write(cache, "a file where the folder should be")
    local status, _, err = kjv()
    assert.equal(1, status)
    assert.matches("data.kjv: ", err)
  end)
end)
