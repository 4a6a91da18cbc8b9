//! The edge's system calls on raw descriptors. The only file of the edge with unsafe lines.
//!
//! may_minihttp keeps a connection's stream to itself and gives its descriptor's number away, so what the
//! guard needs (shutdown, direct answers, the kernel's counters) is done by number. Every caller makes sure
//! that the number is still that connection: it is the connection's own coroutine, or it holds the entry's
//! lock (see `table`).
#![allow(unsafe_code, reason = "system calls on descriptors that the standard library does not own")]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Which half of a connection to shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Reads end: what is queued can still be read, then end of file.
    Read,
    /// Writes end: the peer sees end of file after what was written.
    Write,
    /// Both.
    Both,
}

/// What the kernel has counted on a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Bytes received, read or not.
    pub received: u64,
    /// Bytes written that the peer has acknowledged.
    pub acked: u64,
    /// The peer has ended its half and may still read.
    pub half_closed: bool,
}

/// `shutdown(2)`; an error means that the connection is gone already.
pub fn shutdown(fd: RawFd, half: Half) {
    let how = match half {
        Half::Read => libc::SHUT_RD,
        Half::Write => libc::SHUT_WR,
        Half::Both => libc::SHUT_RDWR,
    };
    // SAFETY: takes no pointer; a number that is no socket is an error that is ignored.
    unsafe { libc::shutdown(fd, how) };
}

/// Answers go out at once: each is one write.
pub fn set_nodelay(fd: RawFd) {
    let _ = set_one(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY);
}

/// Has the kernel report once more whether there is something to read (bytes, or the end). Setting
/// SO_RCVLOWAT does that since Linux 4.18 (`tcp_set_rcvlowat`: "Check if we need to signal EPOLLIN right
/// now"); 1 is what it is anyway.
pub fn nudge(fd: RawFd) {
    let _ = set_one(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT);
}

fn set_one(fd: RawFd, level: libc::c_int, option: libc::c_int) -> io::Result<()> {
    let one: libc::c_int = 1;
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the option's value is an int that outlives the call, and its size is given.
    let rc = unsafe { libc::setsockopt(fd, level, option, (&raw const one).cast(), size) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Writes as much of `bytes` as goes without waiting.
pub fn send(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are those of a live slice, which the call only reads.
    let n = unsafe {
        libc::send(fd, bytes.as_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
}

/// Throws away at most `max` received bytes without waiting; 0 at the end of the stream.
pub fn discard(fd: RawFd, max: usize) -> io::Result<usize> {
    // SAFETY: with MSG_TRUNC a TCP socket drops the bytes and writes nothing to the (null) buffer, see
    // tcp(7).
    let n = unsafe { libc::recv(fd, std::ptr::null_mut(), max, libc::MSG_DONTWAIT | libc::MSG_TRUNC) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
}

/// The kernel's counters (`TCP_INFO`); `None` if this is no TCP connection any more.
pub fn counted(fd: RawFd) -> Option<Counted> {
    // SAFETY: all-zero bytes are a valid tcp_info, which is numbers only.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes into `info`, which is that large, and sets `len` to what
    // it wrote.
    let rc = unsafe {
        libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut len)
    };
    // an older kernel writes less, but bytes_received is there since 4.1
    (rc == 0).then_some(Counted {
        received: info.tcpi_bytes_received,
        acked: info.tcpi_bytes_acked,
        half_closed: info.tcpi_state == TCP_CLOSE_WAIT,
    })
}

/// `TCP_CLOSE_WAIT` of the kernel's `enum tcp_state`.
const TCP_CLOSE_WAIT: u8 = 8;

/// Bytes received that nobody has read.
pub fn unread(fd: RawFd) -> u64 {
    queued(fd, libc::FIONREAD)
}

/// Bytes written that the peer has not acknowledged.
pub fn unacked(fd: RawFd) -> u64 {
    queued(fd, libc::TIOCOUTQ)
}

fn queued(fd: RawFd, what: libc::Ioctl) -> u64 {
    let mut n: libc::c_int = 0;
    // SAFETY: both requests write one int, to a local that outlives the call.
    let rc = unsafe { libc::ioctl(fd, what, &raw mut n) };
    if rc == 0 { u64::try_from(n).unwrap_or(0) } else { 0 }
}

/// Bytes that were handed to the kernel on a connection, ever.
pub fn written(fd: RawFd) -> Option<u64> {
    // an acknowledgement may come between the two calls: look until nothing moved
    let mut before = unacked(fd);
    for _ in 0..8 {
        let acked = counted(fd)?.acked;
        let after = unacked(fd);
        if before == after {
            return Some(acked + after);
        }
        before = after;
    }
    None
}

/// The peer's address.
pub fn peer(fd: RawFd) -> Option<IpAddr> {
    name(fd, libc::getpeername).map(|address| address.ip().to_canonical())
}

type NameCall = unsafe extern "C" fn(libc::c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int;

fn name(fd: RawFd, call: NameCall) -> Option<SocketAddr> {
    // SAFETY: all-zero bytes are a valid sockaddr_storage.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let mut len = size_of_val(&storage) as libc::socklen_t;
    // SAFETY: getpeername and getsockname write at most `len` bytes, and the storage is that large.
    let rc = unsafe { call(fd, (&raw mut storage).cast(), &raw mut len) };
    if rc != 0 {
        return None;
    }
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that it is a sockaddr_in; the storage is larger and aligned for it.
            let v4 = unsafe { *(&raw const storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddr::from((ip, u16::from_be(v4.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: as above, for sockaddr_in6.
            let v6 = unsafe { *(&raw const storage).cast::<libc::sockaddr_in6>() };
            Some(SocketAddr::from((Ipv6Addr::from(v6.sin6_addr.s6_addr), u16::from_be(v6.sin6_port))))
        }
        _ => None,
    }
}

/// A socket that is bound and does not listen: proves that nobody else listens on the address, and keeps port
/// 0's choice until the server has bound it too.
pub struct Reservation {
    _socket: OwnedFd,
    /// The address with its real port.
    pub address: SocketAddr,
}

/// Binds `address` with SO_REUSEADDR and without SO_REUSEPORT: fails with `AddrInUse` if anyone listens
/// there, whatever options they set, and is not hindered by connections in TIME_WAIT.
pub fn reserve(address: SocketAddr) -> io::Result<Reservation> {
    let domain = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: takes no pointer.
    let fd = unsafe { libc::socket(domain, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the number was just given to us and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set_one(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
    bind(&socket, address)?;
    let address = name(fd, libc::getsockname).ok_or_else(io::Error::last_os_error)?;
    Ok(Reservation { _socket: socket, address })
}

fn bind(socket: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    let rc = match address {
        SocketAddr::V4(v4) => {
            // SAFETY: all-zero bytes are a valid sockaddr_in.
            let mut raw: libc::sockaddr_in = unsafe { std::mem::zeroed() };
            raw.sin_family = libc::AF_INET as libc::sa_family_t;
            raw.sin_port = v4.port().to_be();
            raw.sin_addr.s_addr = u32::from(*v4.ip()).to_be();
            let len = size_of_val(&raw) as libc::socklen_t;
            // SAFETY: the address is a live sockaddr_in of that size.
            unsafe { libc::bind(socket.as_raw_fd(), (&raw const raw).cast(), len) }
        }
        SocketAddr::V6(v6) => {
            // SAFETY: all-zero bytes are a valid sockaddr_in6.
            let mut raw: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
            raw.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            raw.sin6_port = v6.port().to_be();
            raw.sin6_addr.s6_addr = v6.ip().octets();
            raw.sin6_scope_id = v6.scope_id();
            let len = size_of_val(&raw) as libc::socklen_t;
            // SAFETY: the address is a live sockaddr_in6 of that size.
            unsafe { libc::bind(socket.as_raw_fd(), (&raw const raw).cast(), len) }
        }
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Cancels the coroutine that accepts: it unwinds at its next wait, which closes the listening socket.
pub fn cancel(accept: &may::coroutine::JoinHandle<()>) {
    // SAFETY: the coroutine is may_minihttp's accept loop: it holds the listener and the factory and no lock,
    // and unwinding drops both.
    unsafe { accept.coroutine().cancel() };
}

/// Microseconds of a duration, for times that are kept as one word.
pub fn micros(time: Duration) -> u64 {
    time.as_micros() as u64
}
