# shellcheck shell=bash
# Jaeger, all in one: takes traces by OTLP and answers queries. Traces are kept in memory only, the newest 20,000.

# Its ports, set by choose_ports or load_ports.
jaeger_grpc='' jaeger_http='' jaeger_query=''

install_jaeger() { install_go jaeger github.com/jaegertracing/jaeger/cmd/all-in-one '' 'about 2 min'; }
is_present_jaeger() { [[ -x $CACHE/bin/jaeger ]]; }

ports_jaeger() {
  choose_ports jaeger jaeger_grpc:OMNI_TEST_JAEGER_OTLP_PORT:4317 jaeger_http:OMNI_TEST_JAEGER_OTLP_HTTP_PORT:4318 \
    jaeger_query:OMNI_TEST_JAEGER_QUERY_PORT:16686
}

check_jaeger() {
  require_free jaeger "$jaeger_grpc" OMNI_TEST_JAEGER_OTLP_PORT &&
    require_free jaeger "$jaeger_http" OMNI_TEST_JAEGER_OTLP_HTTP_PORT &&
    require_free jaeger "$jaeger_query" OMNI_TEST_JAEGER_QUERY_PORT
}

# What OmniBridge doesn't use (Jaeger's older protocols, its admin port) gets any free port, on loopback. Jaeger
# doesn't trace itself: its own spans would stand among those that a test looks for.
launch_jaeger() {
  launch jaeger env COLLECTOR_OTLP_ENABLED=true SPAN_STORAGE_TYPE=memory OTEL_TRACES_SAMPLER=always_off \
    "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:$jaeger_grpc" \
    "$CACHE/bin/jaeger" --log-level=warn --memory.max-traces=20000 \
    --collector.otlp.grpc.host-port="127.0.0.1:$jaeger_grpc" --collector.otlp.http.host-port="127.0.0.1:$jaeger_http" \
    --query.http-server.host-port="127.0.0.1:$jaeger_query" --query.grpc-server.host-port=127.0.0.1:0 \
    --collector.grpc-server.host-port=127.0.0.1:0 --collector.http-server.host-port=127.0.0.1:0 \
    --admin.http.host-port=127.0.0.1:0 --http-server.host-port=127.0.0.1:0 \
    --processor.jaeger-binary.server-host-port=127.0.0.1:0 --processor.jaeger-compact.server-host-port=127.0.0.1:0 \
    --processor.zipkin-compact.server-host-port=127.0.0.1:0
}

ready_jaeger() {
  curl -fs -m 2 "http://127.0.0.1:$jaeger_query/api/services" >/dev/null && port_is_taken "$jaeger_grpc"
}

stop_jaeger() { end jaeger TERM 15; }
clean_jaeger() { :; }
address_jaeger() { echo "http://127.0.0.1:$jaeger_query"; }

env_jaeger() {
  env_line OTEL_EXPORTER_OTLP_ENDPOINT "http://127.0.0.1:$jaeger_grpc"
  env_line JAEGER_QUERY "http://127.0.0.1:$jaeger_query"
}
