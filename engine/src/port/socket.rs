//! What sockets can do that the standard library does not offer: options, and the times of arrival and departure.
//!
//! Safe wrappers of setsockopt(2) and recvmsg(2), for ports on sockets and for whoever measures a way through the
//! switch: [`receive_timed`] tells when the kernel took a datagram from the network, which is long before the thread
//! that waits for it runs; [`departure_time`] when the sender's kernel had it in its interface, which is long after the call.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// Room for the control messages of one datagram; a time of arrival takes 32 bytes, one of departure 64, with 48 or, over IPv6, 64
/// of what the error queue says beside it.
const CONTROL_BYTES: usize = 128;

/// Control messages, aligned as the kernel writes them.
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// Sets an option whose value is a number.
///
/// # Errors
/// What the kernel said.
pub fn set_option(socket: &impl AsFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let (start, length) = ((&raw const value).cast(), size_of::<libc::c_int>() as libc::socklen_t);
    let descriptor = socket.as_fd().as_raw_fd();
    // SAFETY: the value lives until the call returns, its length is given, and the kernel only reads it.
    let result = unsafe { libc::setsockopt(descriptor, level, option, start, length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Bytes of frames that wait, by the kernel's count: some thousand small ones each way. Without the right to so many the
/// socket only drops, or says that it is full, sooner.
pub(crate) fn set_buffers(socket: &impl AsFd) -> io::Result<()> {
    const RECEIVE_BYTES: libc::c_int = 8 << 20;
    const SEND_BYTES: libc::c_int = 4 << 20;
    for (forced, plain, bytes) in
        [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, RECEIVE_BYTES), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, SEND_BYTES)]
    {
        if set_option(socket, libc::SOL_SOCKET, forced, bytes).is_err() {
            set_option(socket, libc::SOL_SOCKET, plain, bytes)?;
        }
    }
    Ok(())
}

/// From now on the kernel notes when each datagram of the socket arrives, see [`receive_timed`].
///
/// # Errors
/// What the kernel said.
pub fn note_arrival_times(socket: &impl AsFd) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)
}

/// Bytes of control messages that the kernel wrote. Their count and that of parts have 32 bits in musl's header and 64 in the
/// kernel's and glibc's, with zeros beside them that a zeroed header has already.
#[allow(clippy::unnecessary_cast, reason = "it is no cast with glibc")]
pub(crate) fn control_bytes(header: &libc::msghdr) -> usize {
    header.msg_controllen as usize
}

/// From now on the kernel notes when each datagram that the socket sends is given to its interface, see [`departure_time`].
///
/// # Errors
/// What the kernel said.
pub fn note_departure_times(socket: &impl AsFd) -> io::Result<()> {
    let wanted =
        libc::SOF_TIMESTAMPING_TX_SOFTWARE | libc::SOF_TIMESTAMPING_SOFTWARE | libc::SOF_TIMESTAMPING_OPT_TSONLY;
    set_option(socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPING, wanted as libc::c_int)
}

/// When the kernel gave a datagram of the socket to its interface, as a time of day since 1970; each is told once, the oldest first.
/// `None` if there is no more, as without [`note_departure_times`].
///
/// # Errors
/// What the kernel said.
pub fn departure_time(socket: &impl AsFd) -> io::Result<Option<Duration>> {
    match receive(socket, &mut [], libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) {
        Ok((_, messages)) => Ok(time(messages.written(), libc::SCM_TIMESTAMPING)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Receives one datagram. Returns its length and when the kernel took it from the network, as a time of day since
/// 1970; `None` without [`note_arrival_times`].
///
/// # Errors
/// What the kernel said, the end of a time limit among it.
pub fn receive_timed(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Option<Duration>)> {
    let (length, messages) = receive(socket, buffer, 0)?;
    Ok((length, time(messages.written(), libc::SCM_TIMESTAMPNS)))
}

/// What came beside a datagram.
struct Messages {
    control: Control,
    bytes: usize,
}

impl Messages {
    fn written(&self) -> &[u8] {
        self.control.0.get(..self.bytes).unwrap_or_default()
    }
}

fn receive(socket: &impl AsFd, buffer: &mut [u8], flags: libc::c_int) -> io::Result<(usize, Messages)> {
    let mut control = Control([0; CONTROL_BYTES]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: a header of zeros is a valid one: no name, no parts, no control messages.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL_BYTES as _;
    // SAFETY: the header, the buffer and the room for control messages live until the call returns, lengths given.
    let length = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, flags) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    Ok((length, Messages { bytes: control_bytes(&header), control }))
}

/// The time among control messages (cmsg(3)): length, level, kind, and for these kinds a `timespec` first.
fn time(mut messages: &[u8], kind: libc::c_int) -> Option<Duration> {
    const HEADER_BYTES: usize = size_of::<libc::cmsghdr>();
    while let Some((header, rest)) = messages.split_at_checked(HEADER_BYTES) {
        let length = usize::from_ne_bytes(header[..8].try_into().ok()?);
        let number = |at: usize| header[at..at + 4].try_into().map(i32::from_ne_bytes).ok();
        if number(8)? == libc::SOL_SOCKET && number(12)? == kind {
            let word = |at: usize| rest.get(at..at + 8)?.try_into().map(u64::from_ne_bytes).ok();
            return Some(Duration::new(word(0)?, u32::try_from(word(8)?).ok()?));
        }
        messages = messages.get(length.max(HEADER_BYTES).next_multiple_of(8)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_datagram_arrives_between_its_sending_and_its_reading() {
        let [sender, receiver] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").expect("socket"));
        receiver.set_read_timeout(Some(Duration::from_secs(2))).expect("timeout");
        let to = receiver.local_addr().expect("address");
        let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        let mut buffer = [0; 8];
        sender.send_to(b"first", to).expect("send");
        assert_eq!(receive_timed(&receiver, &mut buffer).expect("datagram"), (5, None));
        note_arrival_times(&receiver).expect("option");
        let before = now();
        sender.send_to(b"second", to).expect("send");
        let (length, time) = receive_timed(&receiver, &mut buffer).expect("datagram");
        assert_eq!((length, &buffer[..6]), (6, b"second".as_slice()));
        let time = time.expect("a time");
        assert!(before <= time && time <= now(), "{before:?} {time:?}");
    }

    #[test]
    fn a_datagram_departs_between_its_sending_and_its_arrival() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let [sender, receiver] = [(); 2].map(|()| UdpSocket::bind(address).expect("socket"));
            receiver.set_read_timeout(Some(Duration::from_secs(2))).expect("timeout");
            let to = receiver.local_addr().expect("address");
            sender.send_to(b"first", to).expect("send");
            assert_eq!(departure_time(&sender).expect("no error"), None, "nobody asked");
            note_departure_times(&sender).expect("option");
            note_arrival_times(&receiver).expect("option");
            let before = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
            sender.send_to(b"second", to).expect("send");
            let mut buffer = [0; 8];
            receive_timed(&receiver, &mut buffer).expect("the first");
            let (_, arrival) = receive_timed(&receiver, &mut buffer).expect("the second");
            let departure = departure_time(&sender).expect("no error");
            assert!(departure >= Some(before) && departure <= arrival, "{before:?} {departure:?} {arrival:?}");
            assert_eq!(departure_time(&sender).expect("no error"), None, "it is told once");
        }
    }

    #[test]
    fn other_and_broken_control_messages_have_no_time() {
        let message = |length: usize, kind: i32, content: &[u8]| {
            [&length.to_ne_bytes()[..], &libc::SOL_SOCKET.to_ne_bytes(), &kind.to_ne_bytes(), content].concat()
        };
        let seven = [7u64.to_ne_bytes(), 9u64.to_ne_bytes()].concat();
        let right = message(32, libc::SCM_TIMESTAMPNS, &seven);
        assert_eq!(time(&right, libc::SCM_TIMESTAMPNS), Some(Duration::new(7, 9)));
        let behind = [message(20, libc::SCM_RIGHTS, &[0; 8]), right.clone()].concat();
        assert_eq!(time(&behind, libc::SCM_TIMESTAMPNS), Some(Duration::new(7, 9)));
        assert_eq!(time(&behind, libc::SCM_TIMESTAMPING), None);
        for broken in [&right[..31], &right[..15], &message(usize::MAX - 20, 1, &[0; 8]), &message(0, 1, &[]), &[]] {
            assert_eq!(time(broken, libc::SCM_TIMESTAMPNS), None, "{broken:?}");
        }
    }
}
