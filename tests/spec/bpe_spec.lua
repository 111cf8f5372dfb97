-- mascon.data.bpe and mascon.data.text: tokens of a text, and texts from packed files.
local mc = require "mascon"
local bpe = require "mascon.data.bpe"
local read_text = require "mascon.data.text"
local helper = require "helper"

local function all_bytes()
  local list = {}
  for b = 0, 255 do list[#list + 1] = string.char(b) end
  return table.concat(list)
end

-- Byte-pair encoding as it is defined, by counting anew for each merge; words are given.
local function plain_merges(words, wanted)
  local merges = {}
  while #merges < wanted do
    local counts = {}
    for _, w in ipairs(words) do
      for i = 1, #w - 1 do
        local key = w[i] * 65536 + w[i + 1]
        counts[key] = (counts[key] or 0) + 1
      end
    end
    local best
    for key, n in pairs(counts) do
      if n > 1 and (not best or n > counts[best] or (n == counts[best] and key < best)) then best = key end
    end
    if not best then break end
    local a, b = math.floor(best / 65536), best % 65536
    merges[#merges + 1] = { a, b }
    for _, w in ipairs(words) do
      local i = 1
      while i < #w do
        if w[i] == a and w[i + 1] == b then
          w[i] = 255 + #merges
          table.remove(w, i + 1)
        end
        i = i + 1
      end
    end
  end
  return merges
end

describe("bpe", function()
  it("gives back any bytes, those it was not trained on too", function()
    local tokenizer = bpe.train(("the cat and the hat, "):rep(20), { vocab_size = 280 })
    for _, text in ipairs { "", "a", "the cat", " \n\n  the  hat 1913 [Webster]  ", all_bytes(), ("x"):rep(1000) } do
      local ids = tokenizer:encode(text)
      assert.equal("int32", ids.dtype)
      assert.equal(text, tokenizer:decode(ids))
    end
  end)

  it("learns the merges of the definition, repeated letters and equal counts included", function()
    for _, list in ipairs {
      { "aaaa", "aaa", "aabaab", "ab", "ab" },
      { "banana", "bandana", "ananas", "cabana", "banana" },
      { "xyxyxyxy", "yxyx", "xxyyxx", "yyy", "yyyyy", "zz" },
    } do
      local words = {}
      for i, w in ipairs(list) do words[i] = { w:byte(1, -1) } end
      local want = plain_merges(words, 12)
      local got = bpe.train(table.concat(list, "!"), { vocab_size = 256 + 12 }) -- "!" is a word of its own
      assert.same(want, got.merges)
    end
  end)

  it("keeps merges within words: a space goes with what follows, blanks and digits stay apart", function()
    local tokenizer = bpe.train(("one two\n  12 one two\n  12 "):rep(50), { vocab_size = 300 })
    local pieces = {}
    for i, id in ipairs(tokenizer:encode("one two\n  12"):totable()) do pieces[i] = tokenizer:decode { id } end
    assert.same({ "one", " two", "\n ", " 12" }, pieces)
  end)

  it("stops where no pair is left that is there twice", function()
    assert.equal(256, bpe.train("abcdefg", { vocab_size = 1000 }).vocab_size)
    assert.equal(256, bpe.train("", { vocab_size = 1000 }).vocab_size)
    assert.equal(257, bpe.train("ab ab", { vocab_size = 257 }).vocab_size)
  end)

  it("with 256 tokens is the bytes themselves", function()
    local text = all_bytes()
    local ids = bpe.train(text, { vocab_size = 256 }):encode(text)
    assert.is_true(mc.equal(ids, mc.arange(256, { dtype = "int32", device = "cpu" })))
  end)

  it("comes back from its state", function()
    local text = ("she sells sea shells by the sea shore; "):rep(9)
    local one = bpe.train(text, { vocab_size = 290 })
    local two = bpe.from_state(one:state_dict())
    assert.equal(one.vocab_size, two.vocab_size)
    assert.is_true(mc.equal(one:encode(text), two:encode(text)))
    assert.is_true(one:encode(text):numel() < #text / 2)
  end)

  it("names what it cannot take", function()
    helper.raises("bpe.train: wanted a string, got 7", bpe.train, 7)
    helper.raises("bpe.train: vocab_size: 255 is out of range, wanted 256 to 65536", bpe.train, "x",
      { vocab_size = 255 })
    local tokenizer = bpe.train("x", { vocab_size = 256 })
    helper.raises("bpe: encode: wanted a string, got nil", tokenizer.encode, tokenizer, nil)
    helper.raises("bpe: decode: token 256 at 1, legal are 0 to 255", tokenizer.decode, tokenizer, { 3, 256 })
    local merges = mc.tensor({ { 97, 256 } }, { dtype = "int32" })
    helper.raises("bpe.from_state: merge 0 is of token 256, wanted one from before it", bpe.from_state,
      { merges = merges })
    helper.raises("bpe.from_state: merges is [3], wanted [merges, 2]", bpe.from_state, { merges = mc.zeros(3) })
  end)
end)

describe("data.text", function()
  local function file_of(bytes, ending)
    local path = os.tmpname()
    local file = assert(io.open(path, "wb"))
    file:write(bytes)
    file:close()
    if ending then assert(os.rename(path, path .. ending)) end
    return path .. (ending or "")
  end

  it("reads files as they are, and unpacks gzip and xz", function()
    local bytes = all_bytes():rep(100) .. "whole"
    local path = file_of(bytes)
    assert.equal(bytes, read_text(path))
    for ending, command in pairs { [".gz"] = "gzip", [".dz"] = "gzip", [".xz"] = "xz" } do
      local packed = path .. ending
      assert(os.execute(("%s -c '%s' >'%s'"):format(command, path, packed)) == 0)
      assert.equal(bytes, read_text(packed))
      os.remove(packed)
    end
    os.remove(path)
  end)

  it("raises for a packed file that is cut, and for one that is not there", function()
    local path = file_of("no gzip at all", ".gz")
    helper.raises("data.text: `gzip -dc` failed on " .. path, read_text, path)
    os.remove(path)
    helper.raises("data.text: " .. path .. ": No such file", read_text, path)
    helper.raises("data.text: wanted a path, got nil", read_text, nil)
  end)
end)
