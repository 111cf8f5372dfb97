--- Byte-pair encoding (Sennrich et al. 2016) over bytes: learnt from a text, with nothing but this file.
--
--     local bpe = require("mascon.data.bpe").train(text, {vocab_size = 8192})
--     local ids = bpe:encode(text)          -- int32 [tokens]
--     assert(bpe:decode(ids) == text)       -- any bytes come back as they were
--
-- Tokens 0 .. 255 are the bytes; token 256 + i is the i-th merge of two tokens into one. Merges stay within words: runs
-- of letters, of digits, of blanks or of anything else, with one space before all but blanks, and of 64 bytes at most.
-- Each merge is the pair that is then the most frequent, of equals the one of the lowest tokens: a text gives the same
-- tokens everywhere. Words are learnt and encoded once each, whatever their number: 40 MB take some 15 seconds in all.
local ffi = require "ffi"
local args = require "mascon.args"
local create = require "mascon.create"
local tensor = require "mascon.tensor"

local BPE = {}
BPE.__index = BPE

local BYTES = 256
local WORD = 64 -- bytes of a word at most
local PAIR = 2 ^ 16 -- a pair (a, b) is the number a * PAIR + b; also the largest vocabulary

local bytes_pointer = ffi.typeof "const uint8_t *"
local int32_pointer = ffi.typeof "int32_t *"

-- -- words ------------------------------------------------------------------------------------------

local LETTER, DIGIT, BLANK, OTHER = 0, 1, 2, 3
local SPACE = 32
local class = ffi.new("uint8_t[256]", OTHER)
for b = 0, 255 do
  local c = string.char(b)
  class[b] = (c:find "%a" or b >= 128) and LETTER or c:find "%d" and DIGIT or c:find "%s" and BLANK or OTHER
end

-- The end of the word that begins at i: a run of one class. A blank run leaves its last space to the word that follows.
local function word_end(p, i, n)
  local last = math.min(n, i + WORD)
  local kind, j = class[p[i]], i + 1
  if p[i] == SPACE and j < last and class[p[j]] ~= BLANK then
    kind = class[p[j]]
    j = j + 1
  end
  while j < last and class[p[j]] == kind do j = j + 1 end
  if kind == BLANK and j < n and j - i > 1 and p[j - 1] == SPACE and class[p[j]] ~= BLANK then return j - 1 end
  return j
end

-- The different words of a text in the order of their first places, and how often each is there.
local function count_words(text)
  local p, n, i = ffi.cast(bytes_pointer, text), #text, 0
  local words, counts, index, found = {}, {}, {}, 0
  while i < n do
    local j = word_end(p, i, n)
    local word = ffi.string(p + i, j - i)
    local at = index[word]
    if at then
      counts[at] = counts[at] + 1
    else
      found = found + 1
      index[word], words[found], counts[found] = found, word, 1
    end
    i = j
  end
  return words, counts
end

-- -- learning ---------------------------------------------------------------------------------------

-- A heap of {count, pair}, the largest count first, of equals the smallest pair. Counts in it may be out of date.
local Heap = {}
Heap.__index = Heap

local function before(heap, i, j)
  local a, b = heap.counts[i], heap.counts[j]
  if a ~= b then return a > b end
  return heap.pairs[i] < heap.pairs[j]
end

local function swap(heap, i, j)
  local counts, list = heap.counts, heap.pairs
  counts[i], counts[j] = counts[j], counts[i]
  list[i], list[j] = list[j], list[i]
end

function Heap:push(count, pair)
  local i = self.n + 1
  self.n, self.counts[i], self.pairs[i] = i, count, pair
  while i > 1 do
    local up = math.floor(i / 2)
    if not before(self, i, up) then return end
    swap(self, i, up)
    i = up
  end
end

function Heap:pop()
  local count, pair = self.counts[1], self.pairs[1]
  swap(self, 1, self.n)
  self.n = self.n - 1
  local i = 1
  while true do
    local down = 2 * i
    if down > self.n then return count, pair end
    if down < self.n and before(self, down + 1, down) then down = down + 1 end
    if not before(self, down, i) then return count, pair end
    swap(self, i, down)
    i = down
  end
end

-- The words as tokens, one after the other: {symbols, first, length (by word, from 1), count}.
local function spell(words, counts)
  local total = 0
  for _, word in ipairs(words) do total = total + #word end
  local corpus = { symbols = ffi.new("int32_t[?]", math.max(total, 1)), first = {}, length = {}, count = counts }
  local at = 0
  for w, word in ipairs(words) do
    corpus.first[w], corpus.length[w] = at, #word
    for i = 1, #word do corpus.symbols[at + i - 1] = word:byte(i) end
    at = at + #word
  end
  return corpus
end

-- How often each pair is there, and the words that have it.
local function count_pairs(corpus)
  local counts, where = {}, {}
  for w = 1, #corpus.first do
    local s, c = corpus.symbols + corpus.first[w], corpus.count[w]
    for i = 0, corpus.length[w] - 2 do
      local pair = s[i] * PAIR + s[i + 1]
      local list = where[pair]
      if not list then
        list = {}
        where[pair], counts[pair] = list, 0
      end
      counts[pair] = counts[pair] + c
      if list[#list] ~= w then list[#list + 1] = w end
    end
  end
  return counts, where
end

-- Joins (a, b) to the token `new` in word w; touched(pair, change, w) hears of every pair that came or went.
local function join(corpus, w, a, b, new, touched)
  local s, n, c = corpus.symbols + corpus.first[w], corpus.length[w], corpus.count[w]
  local from, to = 0, 0
  while from < n do
    if from + 1 < n and s[from] == a and s[from + 1] == b then
      if to > 0 then
        touched(s[to - 1] * PAIR + a, -c, w)
        touched(s[to - 1] * PAIR + new, c, w)
      end
      if from + 2 < n then
        touched(b * PAIR + s[from + 2], -c, w)
        touched(new * PAIR + s[from + 2], c, w)
      end
      s[to] = new
      from = from + 2
    else
      s[to] = s[from]
      from = from + 1
    end
    to = to + 1
  end
  corpus.length[w] = to
end

local function learn(corpus, merges)
  local counts, where = count_pairs(corpus)
  local heap = setmetatable({ n = 0, counts = {}, pairs = {} }, Heap)
  for pair, count in pairs(counts) do heap:push(count, pair) end
  local found, fresh = {}, {}
  local function touched(pair, change, w)
    if not counts[pair] then
      counts[pair], where[pair] = 0, {}
      fresh[#fresh + 1] = pair
    end
    counts[pair] = counts[pair] + change
    local list = where[pair]
    if change > 0 and list[#list] ~= w then list[#list + 1] = w end
  end
  while #found < merges and heap.n > 0 do
    local count, pair = heap:pop()
    local now = counts[pair]
    if now and now ~= count then
      if now > 1 then heap:push(now, pair) end -- what was in the heap was old
    elseif now and now > 1 then
      local a, b = math.floor(pair / PAIR), pair % PAIR
      local list, new = where[pair], BYTES + #found
      found[#found + 1], fresh = { a, b }, {}
      for i = 1, #list do join(corpus, list[i], a, b, new, touched) end
      counts[pair], where[pair] = nil, nil
      for i = 1, #fresh do
        if counts[fresh[i]] then heap:push(counts[fresh[i]], fresh[i]) end
      end
    end
  end
  return found
end

-- -- the tokenizer ----------------------------------------------------------------------------------

local function new(merges)
  local self = setmetatable({ merges = merges, vocab_size = BYTES + #merges, _rank = {}, _bytes = {} }, BPE)
  for b = 0, BYTES - 1 do self._bytes[b] = string.char(b) end
  for i, merge in ipairs(merges) do
    local token = BYTES + i - 1
    self._rank[merge[1] * PAIR + merge[2]] = token
    self._bytes[token] = self._bytes[merge[1]] .. self._bytes[merge[2]]
  end
  return self
end

local function want_text(what, text)
  if type(text) ~= "string" then args.raise(("%s: wanted a string, got %s"):format(what, args.show(text))) end
end

--- Learns the merges of a text.
-- @tparam string text
-- @tparam[opt] table options vocab_size = 8192, from 256 (bytes, nothing to learn) to 65536; fewer tokens come of it
--   where no pair is left that is there twice
-- @treturn BPE
local function train(text, options)
  want_text("bpe.train", text)
  local o = args.options("bpe.train", options, { vocab_size = { "positive", 8192 } })
  args.integer("bpe.train: vocab_size", o.vocab_size, BYTES, PAIR)
  if o.vocab_size == BYTES then return new {} end
  return new(learn(spell(count_words(text)), o.vocab_size - BYTES))
end

--- The tokenizer of a state_dict.
-- @tparam table state {merges = int32 [merges, 2]}
local function from_state(state)
  local o = args.options("bpe.from_state", state, { merges = { tensor.is_tensor, required = true, want = "a tensor" } })
  local shape = o.merges:shape()
  if #shape ~= 2 or shape[2] ~= 2 or shape[1] > PAIR - BYTES then
    args.raise(("bpe.from_state: merges is [%s], wanted [merges, 2]"):format(table.concat(shape, ", ")))
  end
  local merges = o.merges:totable()
  for i, merge in ipairs(merges) do
    for _, token in ipairs(merge) do
      if not (token >= 0 and token < BYTES + i - 1 and token % 1 == 0) then
        args.raise(("bpe.from_state: merge %d is of token %g, wanted one from before it"):format(i - 1, token))
      end
    end
  end
  return new(merges)
end

--- {merges = int32 [merges, 2]}: for mc.save.
function BPE:state_dict()
  local t = create.empty(#self.merges, 2, { dtype = "int32", device = "cpu" })
  local p = ffi.cast(int32_pointer, t:data())
  for i, merge in ipairs(self.merges) do p[2 * i - 2], p[2 * i - 1] = merge[1], merge[2] end
  return { merges = t }
end

-- The tokens of one word: the earliest merge first, as they were learnt.
local function tokens_of(self, word)
  local s, rank = { word:byte(1, -1) }, self._rank
  while #s > 1 do
    local best, at = math.huge, nil
    for i = 1, #s - 1 do
      local token = rank[s[i] * PAIR + s[i + 1]]
      if token and token < best then best, at = token, i end
    end
    if not at then break end
    s[at] = best
    table.remove(s, at + 1)
  end
  return s
end

--- The tokens of a text.
-- @tparam string text
-- @treturn Tensor int32 [tokens], on the cpu
function BPE:encode(text)
  want_text("bpe: encode", text)
  local n = #text
  local room = create.empty(n, { dtype = "int32", device = "cpu" }) -- a token has a byte or more
  local out = ffi.cast(int32_pointer, room:data())
  local p, i, at, cache = ffi.cast(bytes_pointer, text), 0, 0, {}
  while i < n do
    local j = word_end(p, i, n)
    local word = ffi.string(p + i, j - i)
    local s = cache[word]
    if not s then
      s = tokens_of(self, word)
      cache[word] = s
    end
    for k = 1, #s do out[at + k - 1] = s[k] end
    at, i = at + #s, j
  end
  return room:narrow(1, 1, at):clone()
end

--- The bytes of tokens.
-- @param ids an integer tensor of one axis, or a list of numbers
-- @treturn string
-- @raise for a token that is not in 0 .. vocab_size - 1
function BPE:decode(ids)
  local list, parts = tensor.is_tensor(ids) and ids:totable() or ids, {}
  for i, id in ipairs(list) do
    parts[i] = self._bytes[id]
      or args.raise(("bpe: decode: token %s at %d, legal are 0 to %d"):format(args.show(id), i - 1,
        self.vocab_size - 1))
  end
  return table.concat(parts)
end

return { train = train, from_state = from_state }
