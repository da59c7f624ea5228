# One Consul server with Connect, for development and tests: the same file for the container (compose.yaml) and for
# the plain process (compose/backends). What differs between them is given as flags: -bind, -client, -data-dir and
# ports. It is not a production configuration: one server, no ACLs, no gossip encryption, plain HTTP.

server           = true
bootstrap_expect = 1
datacenter       = "dc1"

# Fixed, because a container's host name changes whenever it is made anew, and the data directory outlives it.
node_name = "consul"

# Loopback unless a flag says otherwise: whoever reaches this API can take any service's identity.
bind_addr   = "127.0.0.1"
client_addr = "127.0.0.1"

# Kept across restarts (the flag -data-dir says where): the Connect CA, intentions, KV and registrations.
# An in-memory agent would come back with another CA, and every running service would be a stranger to it.

connect {
  enabled = true
}

ui_config {
  enabled = true
}

ports {
  http = 8500
  grpc = 8502

  # Unused here, and each would be one more port to collide on.
  grpc_tls = -1
  dns      = -1
  serf_wan = -1
}

performance {
  # The fastest elections, and no pause for other servers to notice a leave: there are none.
  raft_multiplier  = 1
  leave_drain_time = "200ms"
}

limits {
  # Every watch of every service is a connection that stays open, all from one address; 200, the default, is
  # reached by one test run.
  http_max_conns_per_client = 4000
}

leave_on_terminate = true

log_level                   = "INFO"
disable_update_check        = true
disable_anonymous_signature = true
