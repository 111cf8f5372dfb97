--- Run by busted before each file: MASCON_TEST_DEVICE=cuda runs every spec on that device, for tensors and modules are
-- made there unless they say otherwise.
local device = os.getenv "MASCON_TEST_DEVICE"
if device then
  require("mascon").set_default_device(device)
end
