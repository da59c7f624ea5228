# shellcheck shell=bash
# Kafka: the event broker. One KRaft node, broker and controller in one process; topics are declared by the
# services, never made by a typing error.

# Its ports, set by choose_ports or load_ports.
kafka_broker='' kafka_controller=''

# kcat tells when the broker is ready.
install_kafka() {
  install_maven kafka
  install_kcat
}
is_present_kafka() { [[ -d $CACHE/kafka/lib ]] && command -v java >/dev/null && command -v kcat >/dev/null; }

ports_kafka() {
  choose_ports kafka kafka_broker:OMNI_TEST_KAFKA_PORT:19092 kafka_controller:OMNI_TEST_KAFKA_CONTROLLER_PORT:19093
}

check_kafka() {
  require_free kafka "$kafka_broker" OMNI_TEST_KAFKA_PORT &&
    require_free kafka "$kafka_controller" OMNI_TEST_KAFKA_CONTROLLER_PORT
}

launch_kafka() {
  local home=$DIR/kafka
  local java=(java -Xmx512m -Djava.awt.headless=true "-Dlog4j2.configurationFile=$PARTS/kafka/log4j2.properties"
    -cp "$CACHE/kafka/lib/*")
  mkdir -p "$home"
  cat >"$home/server.properties" <<EOF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$kafka_controller
listeners=PLAINTEXT://127.0.0.1:$kafka_broker,CONTROLLER://127.0.0.1:$kafka_controller
advertised.listeners=PLAINTEXT://127.0.0.1:$kafka_broker
controller.listener.names=CONTROLLER
log.dirs=$home/data

# A single broker has no other to replicate to.
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# Its internal topics need no 50 partitions each; with few, the first consumer joins at once.
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=4
share.coordinator.state.topic.num.partitions=4

# A broker that was killed may register again only when its last session is over: 9 s by default, and a start would
# take that long.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500

auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
EOF
  if [[ ! -e $home/data/meta.properties ]]; then
    format_kafka "${java[@]}" || return 1
  fi
  launch kafka "${java[@]}" kafka.Kafka "$home/server.properties"
}

# A cluster id is 16 random bytes in base64url; one that begins with '-' would be read as an option.
format_kafka() {
  local id='-'
  while [[ $id == -* ]]; do
    id=$(head -c 16 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=')
  done
  rm -rf "$DIR/kafka/data"
  "$@" kafka.tools.StorageTool format --cluster-id "$id" --config "$DIR/kafka/server.properties" \
    >>"$DIR/kafka.log" 2>&1 </dev/null
}

ready_kafka() { kcat -b "127.0.0.1:$kafka_broker" -L -m 2 2>/dev/null | grep -q '^  broker 1 at '; }

stop_kafka() { end kafka TERM 30; }
clean_kafka() { rm -rf "$DIR/kafka"; }
address_kafka() { echo "kafka://127.0.0.1:$kafka_broker"; }
env_kafka() { env_line OMNI_EVENTS "kafka://127.0.0.1:$kafka_broker"; }
