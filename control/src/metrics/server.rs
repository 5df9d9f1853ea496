//! The port that metrics are read at. One thread, apart from everything else; at most [`CLIENTS`] readers, each for at most
//! [`PATIENCE`].

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, oneshot};

use super::{Timings, text};
use crate::api::Inspect;
use crate::plain_http::{self, NOT_FOUND, UNAVAILABLE};

/// Readers served at once; each may hold a text of some 400 B a series.
const CLIENTS: usize = 4;
/// Longest time a reader may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Readers that wait in the kernel's queue.
const BACKLOG: u32 = 64;
/// Time after which a port that could not be had is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// The server; ends when it is dropped.
#[derive(Debug)]
pub struct MetricsServer {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl MetricsServer {
    /// Serves `/metrics` at `address`. A port that cannot be had is reported once and tried again; `report` is told `None`
    /// once it is served.
    ///
    /// # Errors
    /// The kernel refused a thread.
    pub fn start(
        address: SocketAddr,
        inspect: Arc<dyn Inspect>,
        timings: Arc<Timings>,
        report: impl Fn(Option<String>) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("metrics".into());
        let thread = thread.spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(address, &inspect, &timings, report) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(
    address: SocketAddr,
    inspect: &Arc<dyn Inspect>,
    timings: &Arc<Timings>,
    report: impl Fn(Option<String>),
) {
    let mut reported = false;
    let listener = loop {
        match listen(address) {
            Ok(listener) => {
                report(None);
                break listener;
            }
            Err(error) if !reported => {
                report(Some(format!("metrics at {address} cannot be served: {error}")));
                reported = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    };
    let places = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((client, _)) = listener.accept().await else {
            // Out of descriptors, mostly: others must end first.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (inspect, timings) = (Arc::clone(inspect), Arc::clone(timings));
        tokio::spawn(async move {
            // A reader that goes away or is too slow gets no answer, and nobody misses it.
            let _ = tokio::time::timeout(PATIENCE, talk(client, inspect, timings)).await;
            drop(place);
        });
    }
}

/// Also at an address that comes later, such as that of a loopback interface which is not up yet.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    if address.is_ipv4() {
        rustix::net::sockopt::set_ip_freebind(socket.as_fd(), true)?;
    } else {
        rustix::net::sockopt::set_ipv6_freebind(socket.as_fd(), true)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn talk(mut client: TcpStream, inspect: Arc<dyn Inspect>, timings: Arc<Timings>) -> std::io::Result<()> {
    let Some(path) = plain_http::asked_for(&mut client).await? else { return Ok(()) };
    if path != "/metrics" {
        return plain_http::answer(client, NOT_FOUND).await;
    }
    let made = tokio::task::spawn_blocking(move || text(inspect.as_ref(), &timings)).await;
    let Ok(Ok(body)) = made else { return plain_http::answer(client, UNAVAILABLE).await };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    plain_http::answer(client, &(head + &body)).await
}
