-- Whose finished parts a conversion takes over: those of the same source only, by whatever little that tells of it.
package.path = "tests/faults/?.lua;" .. package.path
local edit = require "h5edit"
local hdf5 = require "mascon.checkpoint.hdf5"
local helper = require "helper"
local lfs = require "lfs"
local mc = require "mascon"
local read = require("convert_helper").read

local COUNT, CHANGED = 6, 3 -- experts, and the one that changes

describe("an interrupted conversion", function()
  local folder, src, dst

  before_each(function()
    folder = os.tmpname()
    os.remove(folder)
    assert(lfs.mkdir(folder))
    src, dst = folder .. "/src.h5", folder .. "/dst.h5"
  end)
  after_each(function() os.execute("rm -rf " .. folder) end)

  local function spill(path, bytes)
    local file = assert(io.open(path, "r+b") or io.open(path, "wb")) -- the same inode where it is there
    file:write(bytes)
    file:close()
  end

  -- The bytes of a file of experts full of their number plus one; `changed` of them is full of 77.
  local function source(changed, has_digests)
    local path = folder .. "/made.h5"
    local writer = hdf5.create(path)
    for i = 0, COUNT - 1 do
      writer:tensor("/m/weight" .. i, mc.full({ 500, 500 }, i == changed and 77 or i + 1))
    end
    writer:commit()
    local text = read(path)
    os.remove(path)
    if not has_digests then text = edit.repair((text:gsub("digest%z", "remark\0"))) end
    return text
  end

  -- Stops a conversion of the source before its file has its name, all datasets written and noted.
  local function interrupt()
    local made
    helper.raises("cannot give the file its name", mc.checkpoint.convert, src, dst, { layout = "single",
      progress = function() made = made or lfs.mkdir(dst) end })
    assert(lfs.rmdir(dst))
    assert.is_not_nil(lfs.attributes(dst .. ".partial"))
    assert.is_truthy(read(dst .. ".journal"):find("\n0 ", 1, true), "no dataset was noted")
  end

  -- The next conversion gives the source as it is now.
  local function gives_the_new_one()
    mc.checkpoint.convert(src, dst, { layout = "single" })
    local found = mc.load(dst).m.weight
    for i = 0, COUNT - 1 do
      helper.same(found:select(1, i + 1), mc.full({ 500, 500 }, i == CHANGED and 77 or i + 1))
    end
    assert.is_true(mc.checkpoint.verify(dst).ok)
    assert.is_nil(lfs.attributes(dst .. ".partial"))
    assert.is_nil(lfs.attributes(dst .. ".journal"))
  end

  local function keep_times(fn)
    assert.equal(0, os.execute(("touch -r %s %s/then"):format(src, folder)))
    fn()
    assert.equal(0, os.execute(("touch -r %s/then %s"):format(folder, src)))
  end

  it("takes nothing over from a source without digests that was written to meanwhile", function()
    spill(src, source(nil, false))
    for _, entry in ipairs(hdf5.open(src).entries) do assert.is_nil(entry.attrs.digest) end
    interrupt()
    local inode, size = lfs.attributes(src, "ino"), lfs.attributes(src, "size")
    spill(src, source(CHANGED, false))
    assert.same({ inode, size }, { lfs.attributes(src, "ino"), lfs.attributes(src, "size") })
    gives_the_new_one()
  end)

  it("takes nothing over from another file without digests of the same name, size and time", function()
    spill(src, source(nil, false))
    interrupt()
    local inode, time = lfs.attributes(src, "ino"), lfs.attributes(src, "modification")
    keep_times(function()
      spill(folder .. "/other.h5", source(CHANGED, false))
      assert(os.rename(folder .. "/other.h5", src))
    end)
    assert.is_true(inode ~= lfs.attributes(src, "ino") and time == lfs.attributes(src, "modification"))
    gives_the_new_one()
  end)

  it("takes nothing over from a file whose digests are others, though its inode, size and time are the same", function()
    spill(src, source(nil, true))
    interrupt()
    local inode = lfs.attributes(src, "ino")
    keep_times(function() spill(src, source(CHANGED, true)) end)
    assert.equal(inode, lfs.attributes(src, "ino"))
    gives_the_new_one()
  end)
end)
