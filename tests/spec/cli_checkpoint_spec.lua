-- mascon inspect, diff and verify: exit statuses, texts and JSON, each command in a process of its own.
local dkjson = require "dkjson"
local hdf5 = require "mascon.checkpoint.hdf5"
local mc = require "mascon"

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

-- JSON text of a command whose status is `wanted`.
local function json(wanted, arguments)
  local status, out, err = run(mascon .. " " .. arguments)
  assert.equal(wanted, status, err)
  local value, _, why = dkjson.decode(out)
  assert.is_nil(why)
  return value, out
end

-- Where the bytes of `needle` lie in a file, inverted.
local function damage(path, needle)
  local text = read(path)
  local at = assert(text:find(needle, 1, true))
  assert.is_nil(text:find(needle, at + 1, true))
  local file = assert(io.open(path, "r+b"))
  file:seek("set", at - 1)
  file:write(string.char(255 - text:byte(at)))
  file:close()
end

describe("mascon", function()
  local gl, folder, many, one

  setup(function()
    folder = os.tmpname()
    os.remove(folder)
    assert(os.execute("mkdir " .. folder) == 0)
    many, one = folder .. "/many.h5", folder .. "/one.h5"
    gl = mc.nn.GroupedLinear { num_gemms = G, in_features = 5, out_features = 3 }
    local optimizer = mc.optim.AdamW { params = gl, lr = 0.1 }
    local object = { model = { layers = { experts = gl:state_dict() }, norm = mc.ones(4, { dtype = "bfloat16" }) },
      optimizer = optimizer:state_dict(), step = 100, rng = mc.get_rng_state(), note = "a \"text\"" }
    mc.save(many, object, { layout = "per_expert" })
    mc.save(one, object, { layout = "single" })
  end)
  teardown(function() os.execute("rm -r " .. folder) end)

  local function saved(name, object, opts)
    local path = folder .. "/" .. name
    mc.save(path, object, opts)
    return path
  end

  describe("inspect", function()
    it("shows a tree with the experts of a layer in one line, and the facts of the file above it", function()
      local status, out, err = run(mascon .. " inspect " .. many)
      assert.equal(0, status)
      assert.equal("", err)
      assert.matches("weight{0%-11}%s+12 x float32%[3, 5%]%s+720 bytes  per_expert", out)
      assert.matches("bias{0%-11}%s+12 x float32%[3%]%s+144 bytes  per_expert", out)
      assert.matches("norm%s+bfloat16%[4%]%s+8 bytes\n", out)
      has(out, "mascon checkpoint, format 1, written by " .. mc.version .. "\n")
      has(out, "220 parameters\n") -- 12 * (3 * 5 + 3) + 4, without the optimizer's
      has(out, "step: 100   optimizer: yes   rng: yes\n")
      has(out, "layers: 1 x GroupedLinear of 12 experts, weight per_expert, bias per_expert\n")
      has(out, 'note = "a "text""\n')
      assert.is_nil(out:find("[^\n -~]"))
    end)

    it("shows the single layout as one tensor", function()
      local _, out = run(mascon .. " inspect --tree " .. one)
      assert.matches("    weight%s+float32%[12, 3, 5%]%s+720 bytes  single\n", out)
    end)

    it("shows a line per tensor with --flat, its full name first", function()
      local status, out = run(mascon .. " inspect --flat " .. many)
      assert.equal(0, status)
      local n, last = 0, -1
      for index in out:gmatch("\nmodel%.layers%.experts%.weight(%d+) ") do
        n = n + 1
        assert.is_true(tonumber(index) > last) -- 10 after 9
        last = tonumber(index)
      end
      assert.equal(G, n)
      has(out, "\nstep = 100\n")
    end)

    it("restricts the names with --match and the levels with --depth", function()
      local _, out = run(mascon .. " inspect --flat --match 'exp_avg*weight' " .. many)
      assert.equal(2, select(2, out:gsub("\n", "")))
      local status
      status, out = run(mascon .. " inspect --depth 1 " .. many)
      assert.equal(0, status)
      assert.matches("\nmodel%s+25 tensors%s+872 bytes\n", out)
      assert.is_nil(out:find("weight{", 1, true))
      _, out = run(mascon .. " inspect --depth 2 " .. many)
      assert.matches("\n  layers%.?%S*%s+24 tensors", out)
      assert.equal(2, (run(mascon .. " inspect --depth 0 " .. many)))
    end)

    it("gives JSON with the same keys in the same order every time, and strings for what is not finite", function()
      local path = saved("odd.h5", { x = mc.tensor { 1, 0 / 0, -1 / 0 }, lr = 1 / 0, third = 0.1, big = 2 ^ 53,
        bytes = "\255" })
      local report, text = json(0, "inspect --json --stats " .. path)
      local _, again = json(0, "inspect --json --stats " .. path)
      assert.equal(text, again)
      assert.equal("mascon", report.format)
      local x = report.tensors[1]
      assert.same({ "x", "float32", 1, 1, 1, 1, 1 }, { x.name, x.dtype, x.stats.min, x.stats.max, x.stats.mean,
        x.stats.nan, x.stats.inf })
      assert.same({ 3 }, x.shape)
      assert.equal(32, #x.digest)
      local values = {}
      for _, item in ipairs(report.values) do values[item.name] = item.value end
      assert.same({ lr = "inf", third = 0.1, big = 2 ^ 53, bytes = "\195\191" }, values)
      assert.is_true(text:find('"path":', 1, true) < text:find('"format":', 1, true))
      report = json(0, "inspect --json " .. many)
      assert.equal(220, report.parameters)
      assert.equal(100, report.step)
      assert.is_true(report.optimizer and report.rng)
      assert.same({ name = "model.layers.experts", type = "GroupedLinear", num_gemms = G, in_features = 5,
        out_features = 3, weight_layout = "per_expert", bias_layout = "per_expert" }, report.layers[1])
    end)

    it("shows statistics, those of all experts of a line together", function()
      local path = saved("stats.h5", { w = mc.arange(6):view(3, 2), v = mc.tensor { 0, 0 / 0 },
        e0 = mc.tensor { 1, 2 }, e1 = mc.tensor { 3, 6 } })
      local _, out = run(mascon .. " inspect --stats " .. path)
      assert.matches("e{0,1}%s+2 x float32%[2%]%s+16 bytes  min 1  max 6  mean 3  std 1%.87083  zeros 0  nan 0  inf 0",
        out)
      assert.matches("v%s+float32%[2%]%s+8 bytes  min 0  max 0  mean 0  std 0  zeros 1  nan 1  inf 0", out)
    end)
  end)

  describe("diff", function()
    it("answers 0 for equal files in two layouts and says which layouts they have", function()
      local status, out, err = run(("%s diff %s %s"):format(mascon, many, one))
      assert.equal(0, status)
      assert.equal("", err)
      has(out, "layout: model.layers.experts.weight: per_expert in A, single in B\n")
      has(out, "equal: 8 tensors and 8 values equal\n")
      assert.equal(1, (run(("%s diff --exact-layout %s %s"):format(mascon, many, one))))
    end)

    it("answers 1 for files that differ, a line per finding", function()
      local a = saved("a.h5", { x = mc.ones(2, 3), y = mc.ones(2), z = mc.ones(2), step = 1, w0 = mc.ones(1) })
      local b = saved("b.h5", { x = mc.ones(2, 3) * 1.5, y = mc.ones(3), z = mc.ones(2, { dtype = "float64" }),
        step = 2 })
      local status, out = run(("%s diff --stats %s %s"):format(mascon, a, b))
      assert.equal(1, status)
      assert.equal(table.concat({
        "only in A: w0",
        "shape: y: [2] in A, [3] in B",
        "dtype: z: float32 in A, float64 in B",
        "differs: x: 6 of 6 elements, max abs 0.5, max rel 0.333333, cosine 1, first at [0, 0]: 1 in A, 1.5 in B",
        "value: step: 1 in A, 2 in B",
        "DIFFERENT: 0 tensors and 0 values equal\n" }, "\n"), out)
      local report = json(1, ("diff --json %s %s"):format(a, b))
      assert.is_false(report.ok)
      assert.equal("x", report.differing[1].name)
      assert.equal(0.5, report.differing[1].max_abs)
      assert.same({ 0, 0 }, report.differing[1].first.index)
    end)

    it("takes tolerances", function()
      local a, b = saved("a.h5", { x = mc.ones(2) }), saved("b.h5", { x = mc.ones(2) * 1.25 })
      assert.equal(1, (run(("%s diff --atol 0.125 %s %s"):format(mascon, a, b))))
      assert.equal(0, (run(("%s diff --atol 0.25 %s %s"):format(mascon, a, b))))
      assert.equal(0, (run(("%s diff --rtol 0.2 %s %s"):format(mascon, a, b))))
    end)

    it("prints no control characters that a file has in its names", function()
      local red = "\27[31m"
      local a = saved("red_a.h5", { [red] = mc.ones(2), s = { [red] = mc.ones(2) }, d = { [red] = mc.ones(2) },
        v = { [red] = 1, ["\194\155"] = 1 } })
      local b = saved("red_b.h5", { [red] = mc.zeros(2), s = { [red] = mc.ones(3) },
        d = { [red] = mc.ones(2, { dtype = "int32" }) }, v = { [red] = 2 } })
      local status, out = run(("%s diff %s %s"):format(mascon, a, b))
      assert.equal(1, status)
      for _, line in ipairs { "shape: s.?[31m: ", "dtype: d.?[31m: ", "differs: ?[31m: ", "value: v.?[31m: ",
        "only in A: v.?\n" } do
        has(out, line)
      end
      assert.is_nil(out:find("\27", 1, true))
    end)

    it("names a lost expert", function()
      local sd = gl:state_dict()
      sd.weight10 = nil
      local status, out = run(("%s diff %s %s"):format(mascon, saved("lost.h5", { model = sd }),
        saved("whole.h5", { model = gl:state_dict() }, { layout = "single" })))
      assert.equal(1, status)
      has(out, "only in B: model.weight10\n")
    end)
  end)

  describe("verify", function()
    it("answers 0 for a good file and says how many datasets it read", function()
      local status, out, err = run(mascon .. " verify " .. one)
      assert.equal(0, status)
      assert.equal(one .. ": ok, 8 datasets checked\n", out)
      assert.equal("", err)
    end)

    it("answers 1 for one flipped byte and names the tensor", function()
      local y = mc.tensor({ 77, 78, 79, 80 }, { dtype = "uint8" }) -- "MNOP"
      local path = saved("bad.h5", { model = { x = mc.ones(8), y = y } })
      damage(path, "MNOP")
      local status, out = run(mascon .. " verify " .. path)
      assert.equal(1, status)
      has(out, "damaged: /model/y: its bytes have the digest ")
      has(out, "bad.h5: DAMAGED, 2 datasets checked\n")
      local report = json(1, "verify --json " .. path)
      assert.is_false(report.ok)
      assert.equal("/model/y", report.damaged[1].name)
      assert.same({}, report.unverified)
    end)

    describe("of a layer", function()
      -- A file of one group with these tensors and facts.
      local function layer(facts, tensors)
        local path = folder .. "/layer.h5"
        local writer = hdf5.create(path)
        for name, value in pairs { format = "mascon", format_version = 1, table = true } do
          writer:attr("/", name, value)
        end
        writer:group("/m")
        writer:attr("/m", "table", true)
        for name, value in pairs(facts) do writer:attr("/m", name, value) end
        for name, t in pairs(tensors) do writer:tensor("/m/" .. name, t) end
        writer:commit()
        return path
      end
      local function experts(list, shape)
        local tensors = {}
        for _, i in ipairs(list) do tensors["weight" .. i] = mc.full(shape or { 2, 2 }, i) end
        return tensors
      end
      -- The facts of a layer of three experts [2, 2] with some of them replaced.
      local function with(changes)
        local facts = { type = "GroupedLinear", num_gemms = 3, out_features = 2, in_features = 2,
          weight_layout = "single" }
        for name, value in pairs(changes) do facts[name] = value end
        return facts
      end
      local function messages(facts, tensors)
        local report = mc.checkpoint.verify(layer(facts, tensors))
        local list = {}
        for i, found in ipairs(report.facts) do
          assert.equal("/m", found.name)
          list[i] = found.message
        end
        assert.equal(#list == 0, report.ok)
        assert.same({}, report.damaged)
        return list
      end
      local stacked = { weight = mc.ones(3, 2, 2) }

      it("answers 1 where the tensors contradict what is said of it, in lines and in JSON", function()
        local path = layer(with { num_gemms = 2 ^ 40 }, stacked)
        local status, out, err = run(mascon .. " verify " .. path)
        assert.equal(1, status)
        assert.equal("", err)
        assert.equal(("layer: /m: weight: its shape is [3, 2, 2], and num_gemms is 1099511627776\n"
          .. "%s: CONTRADICTS ITSELF, 1 dataset checked\n"):format(path), out)
        assert.same({ { name = "/m", message = "weight: its shape is [3, 2, 2], and num_gemms is 1099511627776" } },
          json(1, "verify --json " .. path).facts)
        assert.same({}, json(0, "verify --json " .. many).facts)
      end)

      it("takes what is so, also where bias and views are beside it", function()
        assert.same({}, messages(with {}, stacked))
        assert.same({}, messages(with { weight_layout = "per_expert" }, experts { 0, 1, 2 }))
        assert.same({}, messages(with { bias_layout = "single" }, { weight = mc.ones(3, 2, 2), bias = mc.ones(3, 2) }))
        for _, layout in ipairs { "single", "per_expert" } do
          for _, views in ipairs { false, true } do
            local path = saved("good.h5", { model = gl:state_dict() }, { layout = layout, views = views })
            assert.equal(0, (run(mascon .. " verify " .. path)))
          end
        end
      end)

      it("finds facts that no layer has", function()
        for _, case in ipairs { { -5, "-5" }, { 1.5, "1.5" }, { 1 / 0, "inf" }, { 0 / 0, "nan" }, { 0, "0" },
          { "3", '"3"' }, { true, "true" }, { 2LL ^ 60, "1152921504606846976" } } do
          assert.same({ ("num_gemms is %s, wanted an integer of 1 or more"):format(case[2]) },
            messages(with { num_gemms = case[1] }, stacked))
        end
        assert.same({ 'in_features is "ma?ny", wanted an integer of 0 or more',
          "out_features is -1, wanted an integer of 0 or more" },
          messages(with { in_features = "ma\27ny", out_features = -1 }, stacked))
        assert.same({ "weight_layout is true, wanted single or per_expert",
          'bias_layout is "both", wanted single or per_expert', "optimizer_state is 1, wanted true or false" },
          messages(with { weight_layout = true, bias_layout = "both", optimizer_state = 1 }, stacked))
        assert.same({ "type is missing, wanted a text", "num_gemms is missing, wanted an integer of 1 or more" },
          messages({ weight_layout = "single" }, stacked))
      end)

      it("finds experts that are lost, and those that are too many", function()
        local facts = with { weight_layout = "per_expert", num_gemms = 8 }
        assert.same({ "weight: experts 3-5 of 8 are missing" }, messages(facts, experts { 0, 1, 2, 6, 7 }))
        assert.same({ "weight: expert 7 of 8 is missing" }, messages(facts, experts { 0, 1, 2, 3, 4, 5, 6 }))
        assert.same({ "weight: experts 0,2-7 of 8 are missing",
          "weight: experts 8,70000 are there, and num_gemms is 8" },
          messages(facts, experts { 1, 8, 70000 }))
        facts.num_gemms = 2 ^ 40
        assert.same({ "weight: experts 2-1099511627775 of 1099511627776 are missing" },
          messages(facts, experts { 0, 1 }))
        local sd = gl:state_dict()
        sd.weight10 = nil
        local status, out = run(mascon .. " verify " .. saved("lost.h5", { model = sd }))
        assert.equal(1, status)
        has(out, "layer: /model: weight: expert 10 of 12 is missing\n")
      end)

      it("finds shapes that are not those of the features, and a layout that is not there", function()
        assert.same({ "weight: its shape is [3, 2, 2], and in_features is 5" },
          messages(with { in_features = 5 }, stacked))
        assert.same({ "weight: its shape is [3, 2], and in_features is 2" },
          messages(with {}, { weight = mc.ones(3, 2) }))
        local tensors = experts { 0, 1, 2 }
        tensors.weight1 = mc.ones(2, 4)
        assert.same({ "weight1: its shape is [2, 4], and in_features is 2" },
          messages(with { weight_layout = "per_expert" }, tensors))
        assert.same({ "weight{0-2}: its shape is [4, 2], and out_features is 2" },
          messages(with { weight_layout = "per_expert" }, experts({ 0, 1, 2 }, { 4, 2 })))
        assert.same({ "bias: its shape is [3, 7], and out_features is 2" },
          messages(with { bias_layout = "single" }, { weight = mc.ones(3, 2, 2), bias = mc.ones(3, 7) }))
        assert.same({ 'weight: there is none, and weight_layout is "single"' }, messages(with {}, experts { 0, 1, 2 }))
      end)
    end)

    it("warns of equal experts on standard error", function()
      local copy = mc.nn.GroupedLinear { num_gemms = G, in_features = 5, out_features = 3 }
      mc.no_grad(function() copy:expert(11).weight:copy_(copy:expert(4).weight) end)
      for _, layout in ipairs { "single", "per_expert" } do
        local path = saved("twins.h5", { model = copy:state_dict() }, { layout = layout })
        local status, _, err = run(mascon .. " verify " .. path)
        assert.equal(0, status)
        assert.equal("mascon verify: warning: model.weight: experts 4,11 hold the same values\n", err)
        assert.same({ { name = "model.weight", experts = { 4, 11 } } }, json(0, "verify --json " .. path).duplicates)
      end
    end)
  end)

  it("answers 4 for a file that is not there, 3 for one that is no checkpoint, 2 for a usage error", function()
    local text = folder .. "/text.h5"
    local file = assert(io.open(text, "w"))
    file:write(("no HDF5 file\n"):rep(100))
    file:close()
    local cut = folder .. "/cut.h5"
    assert.equal(0, (run(("head -c 3000 %s > %s"):format(many, cut))))
    for command, arguments in pairs { inspect = "%s", verify = "%s", diff = one .. " %s" } do
      for path, wanted in pairs { [folder .. "/none.h5"] = 4, [folder] = 4, [text] = 3, [cut] = 3 } do
        local status, out, err = run(("%s %s %s"):format(mascon, command, arguments:format(path)))
        assert.equal(wanted, status, command .. " " .. path)
        assert.equal("", out)
        has(err, ("mascon %s: %s: "):format(command, path))
        assert.is_nil(err:find("\n."), err)
      end
      local status, out, err = run(("%s %s"):format(mascon, command))
      assert.equal(2, status)
      assert.equal("", out)
      has(err, ("mascon %s: missing argument"):format(command))
      has(err, ("mascon %s --help shows the options.\n"):format(command))
      status, out, err = run(("%s %s --jsno %s"):format(mascon, command, one))
      assert.equal(2, status)
      assert.equal("", out)
      has(err, "Did you mean '--json'?")
    end
    local wrong, _, why = run(("%s diff --rtol x %s %s"):format(mascon, one, one))
    assert.equal(2, wrong)
    has(why, "mascon diff: --rtol: wanted a number of 0 or more, got 'x'")
    assert.equal(2, (run(("%s inspect --flat --json %s"):format(mascon, one))))
  end)

  it("answers 4 where the answer cannot be written", function()
    local status, _, err = run(("sh -c '%s inspect %s >/dev/full'"):format(mascon, one))
    assert.equal(4, status)
    has(err, "cannot write the answer")
  end)

  it("shows progress once a job has lasted two seconds, with the time that is left", function()
    local now, lines = 0, {}
    local stream = { write = function(_, ...) lines[#lines + 1] = table.concat { ... } end, flush = function() end }
    local update, finish = require("mascon.cli.files").progress { clock = function() return now end, stream = stream,
      terminal = true, width = 80 }
    update(1e8, 1e9)
    now = 1.9
    update(2e8, 1e9)
    assert.equal(0, #lines)
    now = 2.1
    update(3e8, 1e9)
    now = 3.1
    update(4e8, 1e9)
    has(table.concat(lines), "MB 400/1000  40%")
    has(table.concat(lines), "100 MB/s  0:01  0:06 left")
    finish()
    assert.matches("\n$", lines[#lines])
  end)

  it("begins each help with an example", function()
    assert.equal(1, (select(2, run(mascon .. " --help")):find("Example: mascon ", 1, true)))
    for _, command in ipairs { "inspect", "diff", "verify", "convert", "doctor", "repl", "version" } do
      local status, out = run(("%s %s --help"):format(mascon, command))
      assert.equal(0, status)
      assert.equal(1, (out:find("Example: mascon " .. command, 1, true)))
      has(out, "Usage: mascon " .. command)
    end
  end)
end)
