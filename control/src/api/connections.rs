//! Bounds on connections: how many there are, and how long one may live.
//!
//! Clients of this API send one request on a connection, so one limit on a connection's life also bounds a client
//! that sends slowly, stalls or forgets to close; its memory is bounded by the number of connections.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream, unix};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Sleep;

/// A listener that accepts no more than so many connections at a time; more wait in the kernel's queue.
pub struct BoundedListener {
    listener: UnixListener,
    slots: Arc<Semaphore>,
    life: Duration,
    open: watch::Receiver<bool>,
}

/// A connection that ends when its time is over.
pub struct BoundedConnection {
    stream: UnixStream,
    end: Pin<Box<Sleep>>,
    /// Given back when the connection is dropped; `None` only if the semaphore was closed, which nobody does.
    _slot: Option<OwnedSemaphorePermit>,
}

impl BoundedListener {
    /// Bounds `listener` to `count` connections of at most `life` each; none is accepted while it is not `open`.
    #[must_use]
    pub fn new(listener: UnixListener, count: usize, life: Duration, open: watch::Receiver<bool>) -> BoundedListener {
        BoundedListener { listener, slots: Arc::new(Semaphore::new(count)), life, open }
    }
}

impl Listener for BoundedListener {
    type Io = BoundedConnection;
    type Addr = unix::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let slot = self.slots.clone().acquire_owned().await.ok();
        let (stream, address) = loop {
            // Nobody who could open it again is left only when the process ends.
            let _ = self.open.wait_for(|open| *open).await;
            tokio::select! {
                biased;
                _ = self.open.changed() => {}
                accepted = Listener::accept(&mut self.listener) => break accepted,
            }
        };
        let end = Box::pin(tokio::time::sleep(self.life));
        (BoundedConnection { stream, end, _slot: slot }, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

impl BoundedConnection {
    fn check_time(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.end.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for BoundedConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_time(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for BoundedConnection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check_time(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_time(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
