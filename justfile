# Every task a developer has; `just` alone lists them.

_default:
    @just --list

# Format, lints and docs, warnings denied
check:
    cargo fmt --all --check
    rustfmt --edition 2024 --check migrations/src/*.rs
    npx --yes @bufbuild/buf@1.75.0 lint
    cargo clippy --workspace --all-targets -- -D warnings
    cargo clippy -p tests --test backends -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# The hermetic tests: nothing to install or start
test:
    cargo test --workspace

# The suite on the real Consul, Kafka, PostgreSQL and Jaeger; TLS to Kafka builds OpenSSL, which takes perl
backends dir="target/backends":
    compose/backends install
    compose/backends start --free-ports --dir {{dir}}
    set -a && . {{dir}}/env && set +a && \
        cargo test -p tests --features mesh/kafka-tls --test backends -- --test-threads 32; \
        code=$?; compose/backends stop --dir {{dir}}; exit $code

# The faults at full length: 20 rolling restarts, Consul away for a minute
faults:
    OMNI_TEST_LIMIT=3600 OMNI_TEST_ROUNDS=20 OMNI_TEST_OUTAGE=60 cargo test -p tests --test faults -- --nocapture

# Processes killed at random under load, for MINUTES; `--on real` for the real backends,
# `--fault broker-away` or `broker-fails` for other faults
chaos minutes="15" *args:
    cargo build --profile dist -p tests --features cli/jemalloc --bins
    cargo run --profile dist -p tests --features cli/jemalloc --bin chaos -- {{minutes}} {{args}}

# Benchmarks of the hot paths
bench:
    cargo bench --workspace

# The mesh side by side with tonic and Envoy; the tables go to docs/performance.md
peers *args:
    compose/backends install envoy
    cargo run --profile dist -p benches --bin peers -- \
        --envoy "$(compose/backends where envoy)" --write docs/performance.md {{args}}

# What an acknowledged webhook costs, beside a bare axum handler
webhooks *args:
    cargo build --profile dist -p cli --features jemalloc
    cargo run --profile dist -p benches --bin webhooks -- {{args}}

# What an event costs from the outbox to its consumer, and whether that grows with
# what is stored; `--kafka kafka://…` for Kafka, too
events *args:
    cargo run --profile dist -p benches --bin events -- {{args}}

# Everything in one process
up *args:
    cargo run --release -- up {{args}}

# What a release build from nothing costs: the ten crates that take longest, and the whole
timings:
    #!/usr/bin/env python3
    import json, re, resource, shutil, subprocess, time
    shutil.rmtree("target/timings", ignore_errors=True)
    began = time.monotonic()
    build = ["cargo", "build", "--release", "--timings", "--target-dir", "target/timings"]
    subprocess.run(build, check=True)
    clock, cpu = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    text = open("target/timings/cargo-timings/cargo-timing.html").read()
    units = json.loads(re.search(r"const UNIT_DATA = (\[.*?\]);", text, re.S)[1])
    for unit in sorted(units, key=lambda unit: -unit["duration"])[:10]:
        print(f'{unit["duration"]:7.1f} s  {unit["name"]}{unit["target"]}')
    print(f"{clock:7.1f} s  the whole, {cpu.ru_utime + cpu.ru_stime:.0f} s of processor time")

# Licences, advisories and doubles of the dependencies
deny:
    cargo deny --workspace check
