# Every task a developer has; `just` alone lists them.

_default:
    @just --list

# Format, lints and docs, warnings denied; of every feature, so that OpenSSL is built, which takes perl
check:
    cargo fmt --all --check
    npx --yes @bufbuild/buf@1.75.0 lint
    cargo clippy --workspace --all-targets --all-features -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# The hermetic tests: nothing to install or start
test:
    cargo test --workspace

# The suite on the real Consul, Kafka, PostgreSQL and Jaeger
backends dir="target/backends":
    compose/backends install
    compose/backends start --free-ports --dir {{dir}}
    cargo build --workspace --bins --features tests/backends
    set -a && . {{dir}}/env && set +a && \
        cargo test --workspace --features tests/backends --test backends -- --test-threads 1; \
        code=$?; compose/backends stop --dir {{dir}}; exit $code

# The faults at full length: 20 rolling restarts, Consul away for a minute
faults:
    OMNI_TEST_ROUNDS=20 OMNI_TEST_OUTAGE=60 cargo test -p cli -p tests --test faults -- --nocapture

# Processes killed at random under load, for MINUTES; `--on real` for the real backends,
# `--fault broker-away` or `broker-fails` for other faults
chaos minutes="15" *args:
    cargo build --release -p cli
    cargo run --release -p tests --bin chaos -- {{minutes}} {{args}}

# Benchmarks of the hot paths
bench:
    cargo bench --workspace

# The mesh side by side with tonic and Envoy; the tables go to docs/performance.md
peers *args:
    compose/backends install envoy
    cargo run --release -p benches --features peers --bin peers -- \
        --envoy "$(compose/backends where envoy)" --write docs/performance.md {{args}}

# What an acknowledged webhook costs, beside a bare axum handler
webhooks *args:
    cargo build --release -p cli
    cargo run --release -p benches --features peers --bin webhooks -- {{args}}

# What an event costs from the outbox to its consumer, and whether that grows with
# what is stored; `--kafka kafka://…` for Kafka, too
events *args:
    cargo run --release -p benches --features peers --bin events -- {{args}}

# Everything in one process
up *args:
    cargo run --release -- up {{args}}

# Licences, advisories and doubles of the dependencies
deny:
    cargo deny --workspace check
