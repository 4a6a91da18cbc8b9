//! The few system calls on raw descriptors that the guard needs. The only unsafe lines of the edge.
//!
//! may_minihttp owns the sockets and shows only their numbers. Every call here is on a descriptor whose connection is
//! still in the guard's table: its entry is locked, or the call is made by the connection's own service, which is
//! dropped before the socket is closed. So a number can't have been closed or reused.
#![allow(unsafe_code, reason = "system calls on descriptors that another crate owns; see the module's head")]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Which half of a connection to shut.
#[derive(Clone, Copy)]
pub enum Half {
    Read,
    Write,
    Both,
}

/// Never fails in a way that matters: a socket that is gone is shut.
pub fn shutdown(fd: i32, half: Half) {
    let how = match half {
        Half::Read => libc::SHUT_RD,
        Half::Write => libc::SHUT_WR,
        Half::Both => libc::SHUT_RDWR,
    };
    // SAFETY: touches no memory; on a descriptor that is no socket it only fails.
    unsafe { libc::shutdown(fd, how) };
}

/// Sends without waiting; the number of bytes taken, 0 on any error.
pub fn send(fd: i32, bytes: &[u8]) -> usize {
    // SAFETY: pointer and length describe `bytes`, which outlives the call.
    let sent = unsafe {
        libc::send(fd, bytes.as_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    };
    usize::try_from(sent).unwrap_or(0)
}

/// What is to be read.
pub enum Received {
    /// The peer sends no more.
    End,
    /// Nothing at the moment; the peer is there.
    Nothing,
    /// This many bytes.
    Bytes(usize),
    /// The connection is broken.
    Broken,
}

/// Reads and throws away without waiting.
pub fn discard(fd: i32, buffer: &mut [u8]) -> Received {
    receive(fd, buffer, libc::MSG_DONTWAIT)
}

/// Looks without taking and without waiting.
pub fn peek(fd: i32) -> Received {
    receive(fd, &mut [0; 1], libc::MSG_DONTWAIT | libc::MSG_PEEK)
}

fn receive(fd: i32, buffer: &mut [u8], flags: i32) -> Received {
    // SAFETY: pointer and length describe `buffer`, which outlives the call.
    let got = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), flags) };
    match got {
        0 => Received::End,
        n if n > 0 => Received::Bytes(n as usize),
        _ if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock => Received::Nothing,
        _ => Received::Broken,
    }
}

/// Bytes that the kernel took from the peer, and bytes that the peer confirmed, since the connection began.
pub fn traffic(fd: i32) -> Option<(u64, u64)> {
    let mut info = std::mem::MaybeUninit::<TcpInfo>::zeroed();
    let mut size = size_of::<TcpInfo>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes into `info`, which is that large and zeroed.
    let outcome = unsafe {
        libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &raw mut size)
    };
    if outcome != 0 || (size as usize) < std::mem::offset_of!(TcpInfo, bytes_received) + 8 {
        return None;
    }
    // SAFETY: all-zero bytes are a valid TcpInfo, and the kernel only wrote plain numbers over them.
    let info = unsafe { info.assume_init() };
    Some((info.bytes_received, info.bytes_acked))
}

/// The head of `struct tcp_info` of linux/tcp.h up to the two counters (Linux 4.1 and later).
#[repr(C)]
struct TcpInfo {
    bytes_of_state: [u8; 8],
    numbers: [u32; 24],
    pacing_rate: u64,
    max_pacing_rate: u64,
    bytes_acked: u64,
    bytes_received: u64,
}

/// Small answers go out at once.
pub fn set_nodelay(fd: i32) {
    let on: libc::c_int = 1;
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: pointer and size describe `on`, which outlives the call.
    unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, (&raw const on).cast(), size) };
}

/// The peer's address.
pub fn peer(fd: i32) -> Option<IpAddr> {
    let mut storage = std::mem::MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut size = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes into `storage`, which is that large.
    if unsafe { libc::getpeername(fd, storage.as_mut_ptr().cast(), &raw mut size) } != 0 {
        return None;
    }
    // SAFETY: zeroed is a valid sockaddr_storage; the kernel filled in an address of the family that it names.
    let storage = unsafe { storage.assume_init() };
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that it is a sockaddr_in, which is smaller and no stricter aligned.
            let v4 = unsafe { *(&raw const storage).cast::<libc::sockaddr_in>() };
            Some(IpAddr::V4(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr))))
        }
        libc::AF_INET6 => {
            // SAFETY: as above, for sockaddr_in6.
            let v6 = unsafe { *(&raw const storage).cast::<libc::sockaddr_in6>() };
            Some(IpAddr::V6(Ipv6Addr::from(v6.sin6_addr.s6_addr)).to_canonical())
        }
        _ => None,
    }
}

/// Raises the soft limit of open files to the hard one; the limit then.
pub fn raise_open_files() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills `limit` in, then reads it; both calls end before it does.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
            return 1024;
        }
        let raised = libc::rlimit { rlim_cur: limit.rlim_max, rlim_max: limit.rlim_max };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) == 0 {
            limit = raised;
        }
    }
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}

/// Ends the accept coroutine at its next wait; its listener closes with it.
pub fn cancel(coroutine: &may::coroutine::Coroutine) {
    // SAFETY: the coroutine is may_minihttp's accept loop: it holds a listener and the factory, and both only free
    // their own memory and descriptor when they are dropped by the unwinding.
    unsafe { coroutine.cancel() };
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn the_kernels_counters_are_read_at_the_right_places() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let mut one = TcpStream::connect(listener.local_addr().expect("address")).expect("connected");
        let (mut two, _) = listener.accept().expect("accepted");
        one.write_all(&[7; 1234]).expect("sent");
        two.read_exact(&mut [0; 1234]).expect("received");
        two.write_all(&[7; 77]).expect("sent");
        one.read_exact(&mut [0; 77]).expect("received");
        one.write_all(&[7; 6]).expect("sent");
        two.read_exact(&mut [0; 6]).expect("received");
        assert_eq!(traffic(two.as_raw_fd()), Some((1240, 77)));
        assert_eq!(peer(two.as_raw_fd()), Some(IpAddr::from([127, 0, 0, 1])));
        drop(one);
        std::thread::yield_now();
        assert!(matches!(two.read(&mut [0; 1]), Ok(0)));
        assert!(matches!(peek(two.as_raw_fd()), Received::End));
    }
}
