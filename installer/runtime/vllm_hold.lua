-- http-request lua.hold BACKEND SECONDS: wait until that backend has a server that is up, or the time is over
core.register_action("hold", { "http-req" }, function(txn, backend, seconds)
  for _ = 1, tonumber(seconds) * 5 do
    if txn.f:nbsrv(backend) > 0 then return end
    core.msleep(200)
  end
end, 2)

-- http-request lua.pause SECONDS
core.register_action("pause", { "http-req" }, function(txn, seconds)
  core.msleep(tonumber(seconds) * 1000)
end, 1)
