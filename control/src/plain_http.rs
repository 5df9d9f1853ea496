//! Just enough HTTP for probes: one request's head is read, one answer is written, the connection closes.
//!
//! For ports that anybody may reach: a client gets [`REQUEST_BYTES`] of head, and the caller bounds its time and how many there
//! are at once. Bodies are not read.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest head of a request.
const REQUEST_BYTES: usize = 8 * 1024;

pub(crate) const NOT_FOUND: &str = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
pub(crate) const UNAVAILABLE: &str =
    "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// The path that the client asks for, without its query; `None` if it went away. A head that is too long or is none asks for "".
///
/// # Errors
/// What the kernel said.
pub(crate) async fn asked_for(client: &mut TcpStream) -> std::io::Result<Option<String>> {
    let (mut head, mut part) = (Vec::new(), [0u8; 1024]);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < REQUEST_BYTES {
        match client.read(&mut part).await? {
            0 => return Ok(None),
            read => head.extend_from_slice(&part[..read]),
        }
    }
    Ok(Some(path_of(&head).to_owned()))
}

/// Writes the answer and closes.
///
/// # Errors
/// What the kernel said.
pub(crate) async fn answer(mut client: TcpStream, text: &str) -> std::io::Result<()> {
    client.write_all(text.as_bytes()).await?;
    client.shutdown().await
}

/// The path that the first line of a request names.
fn path_of(head: &[u8]) -> &str {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let target = std::str::from_utf8(line).ok().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
    target.split('?').next().unwrap_or_default()
}
