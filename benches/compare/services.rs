//! The Services of a run: many with ten endpoints each that nobody serves, and behind them in every list one whose only
//! endpoint is the far pod. That one is dialled.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::site::SERVER_PORT;

/// Endpoints of a Service that is not dialled.
pub(crate) const ENDPOINTS: usize = 10;
/// Port of every Service.
pub(crate) const SERVICE_PORT: u16 = 80;

/// So many Services.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Services {
    pub(crate) count: usize,
    pub(crate) far: IpAddr,
}

impl Services {
    /// The address of each, in order.
    pub(crate) fn addresses(self) -> impl Iterator<Item = Ipv4Addr> {
        (0..self.count).map(address)
    }

    /// The endpoints of the Service at this place.
    pub(crate) fn endpoints(self, place: usize) -> Vec<IpAddr> {
        if place + 1 == self.count {
            return vec![self.far];
        }
        // 10.128.0.0/11, as no pod has it.
        let first = (10 << 24) + (128 << 16) + (place * ENDPOINTS) as u32;
        (0..ENDPOINTS as u32).map(|number| Ipv4Addr::from_bits(first + number).into()).collect()
    }

    /// What a client dials.
    pub(crate) fn dialled(self) -> SocketAddr {
        SocketAddr::from((address(self.count - 1), SERVICE_PORT))
    }

    /// Where the dialled one leads.
    pub(crate) fn target(self) -> SocketAddr {
        SocketAddr::new(self.far, SERVER_PORT)
    }
}

/// 10.96.1.0 and on.
fn address(place: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits((10 << 24) + (96 << 16) + 256 + place as u32)
}
