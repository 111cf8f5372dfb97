--- Writes the golden files of the present format version into this folder: what every later version must load.
--
--   scripts/mascon tests/golden/make.lua
--
-- Run once per format version, when it is released; a golden file is never written anew. Every element codes its
-- place (expert, row, column), so golden_spec.lua can tell where each value went.
local folder = debug.getinfo(1, "S").source:match "^@(.*)/" or "."
package.path = folder .. "/../spec/?.lua;" .. package.path
local content = require "golden_content"
local mc = require "mascon"

for _, layout in ipairs { "per_expert", "single" } do
  local path = ("%s/v1_%s.h5"):format(folder, layout)
  assert(not io.open(path), path .. " is there already")
  mc.save(path, content.object(layout))
  print(path)
end
