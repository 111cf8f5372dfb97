-- mascon convert: exit statuses, texts and JSON, and going on after a kill, each command in a process of its own.
local dkjson = require "dkjson"
local hdf5 = require "mascon.checkpoint.hdf5"
local lfs = require "lfs"
local mc = require "mascon"
local system = require "system"

local mascon = "scripts/mascon"
local G = 12

local function read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read("*a")
  file:close()
  return text
end

-- Runs a command; returns status, stdout, stderr.
local function run(command)
  local out, err = os.tmpname(), os.tmpname()
  local status = os.execute(("%s >%s 2>%s"):format(command, out, err))
  local stdout, stderr = read(out), read(err)
  os.remove(out)
  os.remove(err)
  return status / 256, stdout, stderr
end

local function has(text, part)
  assert.is_true(text:find(part, 1, true) ~= nil, ("no '%s' in\n%s"):format(part, text))
end

describe("mascon convert", function()
  local folder, src, dst

  setup(function()
    folder = os.tmpname()
    os.remove(folder)
    assert(lfs.mkdir(folder))
    src, dst = folder .. "/src.h5", folder .. "/dst.h5"
    local gl = mc.nn.GroupedLinear { num_gemms = G, in_features = 5, out_features = 3 }
    local opt = mc.optim.AdamW { params = gl, lr = 0.1 }
    mc.save(src, { model = { experts = gl:state_dict() }, optimizer = opt:state_dict(), step = 100 })
  end)
  teardown(function() os.execute("rm -rf " .. folder) end)
  before_each(function() os.execute(("rm -f %s/dst.h5*"):format(folder)) end)

  local function convert(...)
    return run(table.concat({ mascon, "convert", ... }, " "))
  end

  it("converts, says so in one line, and proves it there and back", function()
    local status, out, err = convert(src, dst, "--layout single --round-trip")
    assert.equal(0, status, err)
    assert.equal("", err)
    has(out, "28 tensors")
    has(out, "there and back: 28 tensors / ")
    has(out, " bytes identical\n")
    assert.equal(G, mc.load(dst).model.experts.weight:size(1))
    assert.equal(2, select(2, out:gsub("\n", "")))
  end)

  it("shows the plan without a destination or with --plan, and writes nothing", function()
    for _, arguments in ipairs { "", dst .. " --plan" } do
      local status, out, err = convert(src, arguments, "--layout single --views")
      assert.equal(0, status, err)
      has(out, "model.experts.weight{0-11}")
      has(out, "stack -> model.experts.weight")
      has(out, "memory: up to")
      assert.is_nil(lfs.attributes(dst))
    end
    local status, out = convert(src, "--layout single --json")
    assert.equal(0, status)
    local plan = dkjson.decode(out)
    assert.is_true(plan.ok)
    assert.is_true(plan.free > plan.size)
    local found
    for _, row in ipairs(plan.rows) do
      if row.targets[1] == "model.experts.weight" then found = row end
    end
    assert.equal(G, #found.sources)
    assert.equal("stack", found.op)
    assert.same({ G, 3, 5 }, found.shape)
  end)

  it("ends with 1 when the plan is not total, whether it is asked for or not", function()
    local bad = folder .. "/bad.h5"
    local writer = hdf5.create(bad)
    for i = 0, 3 do
      if i ~= 2 then writer:tensor("/m/weight" .. i, mc.ones(3, 5)) end
    end
    writer:commit()
    local status, out, err = convert(bad, "--layout single")
    assert.equal(1, status)
    has(out, "[partial] m.weight{0,1,3}: only 3 of 4 experts")
    assert.equal("", err)
    status, out, err = convert(bad, dst, "--layout single")
    assert.equal(1, status)
    assert.equal("", out)
    has(err, "bad.h5: cannot convert, 1 problem; nothing was written\n[partial]")
    assert.is_nil(lfs.attributes(dst))
    assert.equal(0, (convert(bad, dst)))
  end)

  it("ends with 2 for a usage error: no source, a destination that is there, the source itself", function()
    assert.equal(2, (convert()))
    assert.equal(2, (convert(src, dst, "--layout both")))
    local file = assert(io.open(dst, "w"))
    file:write "mine"
    file:close()
    local status, _, err = convert(src, dst)
    assert.equal(2, status)
    has(err, "is there already; --force replaces it")
    assert.equal("mine", read(dst))
    status, _, err = convert(src, src, "--force")
    assert.equal(2, status)
    has(err, "are one file")
    assert.equal(0, (convert(src, dst, "--force --quiet")))
    assert.equal(100, mc.load(dst).step)
  end)

  it("ends with 3 for what is no HDF5 and for damage, 4 for a folder that is not there", function()
    local text = folder .. "/text.h5"
    local file = assert(io.open(text, "w"))
    file:write(("no HDF5 "):rep(100))
    file:close()
    assert.equal(3, (convert(text, dst)))
    local damaged = folder .. "/damaged.h5"
    assert(os.execute(("cp %s %s"):format(src, damaged)) == 0)
    for _, item in ipairs(mc.checkpoint.inspect(src).tensors) do
      if item.name == "model.experts.weight7" then
        file = assert(io.open(damaged, "r+b"))
        file:seek("set", item.offset)
        file:write "\255\254"
        file:close()
      end
    end
    local status, _, err = convert(damaged, dst, "--layout single")
    assert.equal(3, status, err)
    has(err, "weight7")
    assert.is_nil(lfs.attributes(dst))
    assert.equal(4, (convert(folder .. "/none.h5", dst)))
    assert.equal(4, (convert(src, folder .. "/no/dst.h5")))
  end)

  it("takes --match, --quiet and --views, and prints nothing but the status with --quiet", function()
    local status, out, err = convert(src, dst, "--match 'model.*' --layout single --views --quiet --round-trip")
    assert.equal(0, status, err)
    assert.equal("", out .. err)
    local found = mc.checkpoint.inspect(dst)
    assert.equal(2, #found.tensors)
    assert.equal(2 * G, #found.views)
    assert.is_true(mc.checkpoint.verify(dst).ok)
  end)

  it("shows its options with an example first", function()
    local status, out = run(mascon .. " convert --help")
    assert.equal(0, status)
    assert.equal(1, out:find("Example: mascon convert", 1, true))
  end)

  describe("after a kill", function()
    local big, unkilled

    setup(function()
      big, unkilled = folder .. "/big.h5", folder .. "/unkilled.h5"
      local writer = hdf5.create(big)
      for i = 0, 31 do
        writer:tensor("/m/weight" .. i, mc.full({ 1000, 500 }, i))
        writer:tensor("/m/exp/weight" .. i, mc.full({ 500, 500 }, i + 0.5))
      end
      writer:commit()
      assert.equal(0, (convert(big, unkilled, "--layout single")))
    end)

    -- Starts the command and kills it `seconds` after its file has begun; returns whether it was through by then.
    local function kill_after(seconds)
      local pipe = io.popen(("%s convert %s %s --layout single >/dev/null 2>&1 & echo $!"):format(mascon, big, dst))
      local pid = pipe:read "*n"
      pipe:close()
      local patience = system.monotime() + 20
      while not lfs.attributes(dst .. ".partial") and not lfs.attributes(dst) and system.monotime() < patience do
        system.sleep(0.001)
      end
      system.sleep(seconds)
      -- nobody may reap it for a while: a zombie is dead enough, once its last thread has let go of the file
      os.execute(("kill -9 %d 2>/dev/null; while [ -d /proc/%d ] && ! { grep -q ') Z' /proc/%d/stat && "
        .. "[ \"$(ls /proc/%d/task | wc -l)\" -le 1 ]; } 2>/dev/null; do sleep 0.01; done"):format(pid, pid, pid, pid))
      return lfs.attributes(dst) ~= nil
    end

    it("goes on, makes the file of an unkilled run, and leaves nothing beside it", function()
      local partly = 0
      for _, seconds in ipairs { 0, 0.01, 0.02, 0.04, 0.06, 0.1 } do
        os.execute(("rm -f %s*"):format(dst))
        if not kill_after(seconds) then
          assert.is_nil(lfs.attributes(dst))
          partly = partly + (lfs.attributes(dst .. ".partial") and 1 or 0)
          kill_after(seconds / 2)
        end
        local status, _, err = convert(big, dst, "--layout single", lfs.attributes(dst) and "--force" or "")
        assert.equal(0, status, err)
        assert.is_true(read(dst) == read(unkilled), "another file after a kill at " .. seconds)
        assert.is_nil(lfs.attributes(dst .. ".partial"))
        assert.is_nil(lfs.attributes(dst .. ".journal"))
      end
      assert.is_true(partly > 0, "no kill came while the file was written")
    end)

    it("ends at once with Ctrl-C, as a kill by its signal, and goes on in the next run", function()
      local interrupted = 0
      for try = 0, 9 do
        os.execute(("rm -f %s*"):format(dst))
        -- the shell of a terminal would say 130; no error text, and no file
        local status, out, err = run(([[bash -c 'set -m; %s convert %s %s --layout single & n=0
          while [ ! -e %s.partial ] && [ ! -e %s ] && [ $n -lt 5000 ]; do n=$((n+1)); sleep 0.001; done
          sleep 0.0%d; kill -INT $!; wait $!; exit $?']]):format(mascon, big, dst, dst, dst, try))
        if not lfs.attributes(dst) then
          interrupted = interrupted + 1
          assert.equal(130, status)
          assert.equal("", out)
          assert.is_nil(err:find("interrupted", 1, true), err)
          assert.is_not_nil(lfs.attributes(dst .. ".partial"))
          break
        end
      end
      assert.equal(1, interrupted)
      assert.equal(0, (convert(big, dst, "--layout single")))
      assert.is_true(read(dst) == read(unkilled))
    end)

    it("takes over what was finished only where source and options are the same", function()
      -- another conversion to the same place, after a kill of that of `big`
      local function killed(source, opts)
        for try = 1, 10 do
          os.execute(("rm -f %s*"):format(dst))
          if not kill_after(0.05 / try) then break end
        end
        opts.layout = opts.layout or "single"
        opts.overwrite = true
        mc.checkpoint.convert(source, dst, opts)
        assert.is_nil(lfs.attributes(dst .. ".partial"))
      end
      killed(big, { layout = "per_expert" })
      assert.is_not_nil(mc.load(dst).m.weight31)
      killed(big, { resume = false })
      assert.is_true(read(dst) == read(unkilled))
      -- the source is another one now, of the same names and sizes
      local other = folder .. "/other.h5"
      local writer = hdf5.create(other)
      for i = 0, 31 do
        writer:tensor("/m/weight" .. i, mc.full({ 1000, 500 }, -i))
        writer:tensor("/m/exp/weight" .. i, mc.full({ 500, 500 }, i + 0.5))
      end
      writer:commit()
      killed(other, {})
      assert.equal(-31, mc.load(dst).m.weight:select(1, 32):min():item())
    end)
  end)
end)
