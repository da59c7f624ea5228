//! The services of `compose/compose.yaml`, and where Prometheus there finds their metrics.

use std::{fmt::Write as _, net::Ipv4Addr};

use anyhow::ensure;
use mesh::service::{ADMIN_OFFSET, Descriptor};

use super::{Wanted, is_http, port};

/// The first port that has an address of its own in the network of `compose.yaml`, what
/// its last part is, and how many there are: those from 128 on are given to others.
const FIRST_PORT: u16 = 8000;
const FIRST_ADDRESS: u8 = 10;
const ADDRESSES: u8 = 118;

/// The services, in the part of the file that is theirs.
pub(super) fn services(services: &[Descriptor]) -> anyhow::Result<Vec<Wanted>> {
    let mut part = String::new();
    for service in services {
        let (name, port, address) = (service.name, port(service)?, address(service)?);
        let admin_port = port + ADMIN_OFFSET;
        write!(part, "  {name}:\n    <<: *service\n    command: [\"serve\", \"{name}\"]\n")?;
        if !service.dependencies.is_empty() {
            part += "    depends_on:\n      <<: *backends\n";
            for called in service.dependencies {
                writeln!(part, "      {called}: {{ condition: service_healthy }}")?;
            }
        }
        write!(
            part,
            "    environment:\n      <<: *environment\n      OMNI_ADVERTISE: {address}\n"
        )?;
        if is_http(service) {
            write!(part, "    ports:\n      - \"127.0.0.1:{port}:{port}\"\n")?;
        }
        write!(
            part,
            "    networks:\n      mesh: {{ ipv4_address: {address} }}\n    healthcheck:\n      \
             <<: *healthcheck\n      test: [\"CMD\", \"bash\", \"-c\", \"exec 3<>/dev/tcp/127.0.0.1/\
             {admin_port}; printf 'GET /readyz HTTP/1.1\\\\r\\\\nHost: localhost\\\\r\\\\nConnection: \
             close\\\\r\\\\n\\\\r\\\\n' >&3; read -r _ code _ <&3; [ \\\"$$code\\\" = 200 ]\"]\n\n"
        )?;
    }
    Ok(vec![Wanted::Part("compose/compose.yaml".into(), part)])
}

/// Where their metrics are: on each one's admin port.
pub(super) fn prometheus(services: &[Descriptor]) -> anyhow::Result<Vec<Wanted>> {
    let mut part = String::from("      - targets:\n");
    for service in services {
        let (address, admin_port) = (address(service)?, port(service)? + ADMIN_OFFSET);
        writeln!(part, "          - \"{address}:{admin_port}\" # {}", service.name)?;
    }
    Ok(vec![Wanted::Part("compose/prometheus/prometheus.yaml".into(), part)])
}

/// Its fixed address there, by its port.
fn address(service: &Descriptor) -> anyhow::Result<Ipv4Addr> {
    let (name, port) = (service.name, port(service)?);
    let nth = port.checked_sub(FIRST_PORT).and_then(|nth| u8::try_from(nth).ok());
    let nth = nth.filter(|nth| *nth < ADDRESSES);
    ensure!(nth.is_some(), "{name} has port {port}, and no address below 10.77.0.128 goes with it");
    Ok(Ipv4Addr::new(10, 77, 0, FIRST_ADDRESS + nth.unwrap_or_default()))
}
