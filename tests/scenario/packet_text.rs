//! Packets written as `describe` prints them, with what it leaves out behind semicolons.
//!
//! ```text
//! tcp syn 10.1.0.5:40000 > 10.2.0.7:80
//! udp [fd00:1::5]:1 > [fd00:2::7]:53 length 100 ; ttl 1
//! udp 10.1.0.5 > 10.1.0.6 length 8 fragment 1400
//! icmp echo request 10.1.0.5 > 169.254.1.1 id 7 seq 1 length 4
//! icmp timestamp request 10.1.0.5 > 169.254.1.1 length 12
//! arp who-has 169.254.1.1 tell 10.1.0.5
//! vlan 20 udp 10.9.0.1:1 > 10.9.0.2:2 ; to p2
//! vlan s100.20p5 class 46.ect0 udp 10.9.0.1:1 > 10.9.0.2:2
//! vxlan vni 1 192.0.2.2 > 192.0.2.1 | udp 10.2.0.7:1 > 10.1.0.5:2
//! ```
//! Behind semicolons: `ttl N`, `df`, `from MAC|NAME`, `to MAC|NAME|gateway|broadcast`, `gso N`, `partial`,
//! `sequence N`, `ip options`, `hop-by-hop`, `padded N`, `cut N`, `bad checksum`, `outer bad checksum`.

use std::net::{IpAddr, SocketAddr};

use millrace_engine::packet::Mac;
use millrace_engine::port::memory::WireFrame;
use millrace_engine::testing::{ACK, CWR, ECE, FIN, FrameBuilder, PSH, RST, SYN, URG, frame};

use super::given::number;

/// MAC addresses of a packet where its text names none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) source: Mac,
    pub(super) destination: Mac,
}

/// The frame that a text describes; `station` finds the MAC address of a name.
pub(super) fn frame_of(text: &str, link: Link, station: impl Fn(&str) -> Option<Mac>) -> Result<WireFrame, String> {
    let mut parts = text.split(';').map(str::trim);
    let body = parts.next().unwrap_or_default();
    let modifiers: Vec<&str> = parts.collect();
    let mac = |word: &str| match word {
        "broadcast" => Ok(Mac::BROADCAST),
        word => station(word).or_else(|| word.parse().ok()).ok_or(format!("{word:?} has no MAC address")),
    };
    let mut link = link;
    for modifier in &modifiers {
        match modifier.split_once(' ') {
            Some(("from", word)) => link.source = mac(word)?,
            Some(("to", word)) => link.destination = mac(word)?,
            _ => {}
        }
    }
    let (outer_class, behind_class) = match body.strip_prefix("class ").and_then(|rest| rest.split_once(' ')) {
        Some((class, rest)) => (traffic_class(class)?, rest),
        None => (0, body),
    };
    match behind_class.strip_prefix("vxlan vni ") {
        Some(rest) => tunnelled(rest, link, outer_class, &modifiers),
        None => Ok(modified(&modifiers, |before| packet(body, link, before))?.wire()),
    }
}

/// Applies what stands behind semicolons; some of it must be said before the packet is built on.
fn modified(
    modifiers: &[&str],
    build: impl FnOnce(FrameBuilder) -> Result<FrameBuilder, String>,
) -> Result<FrameBuilder, String> {
    let before = if modifiers.contains(&"hop-by-hop") { frame().extension(0, &[5, 2, 0, 0]) } else { frame() };
    let mut builder = build(before)?;
    for modifier in modifiers {
        builder = match modifier.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["ttl", ttl] => builder.ttl(number(ttl)?),
            ["df"] => builder.dont_fragment(),
            ["gso", size] => builder.gso(number(size)?),
            ["partial"] => builder.partial_checksum(),
            ["sequence", sequence] => builder.sequence(number(sequence)?, 1),
            ["ip", "options"] => builder.options(&[1, 1, 1, 0]),
            ["padded", length] => builder.padded_to(number(length)?),
            ["cut", length] => builder.cut_at(number(length)?),
            ["bad", "checksum"] => builder.with_bad_checksum(),
            ["from" | "to", _] | ["hop-by-hop"] | ["outer", ..] => builder,
            _ => return Err(format!("{modifier:?} is not known behind a semicolon")),
        };
    }
    Ok(builder)
}

fn tunnelled(rest: &str, link: Link, class: u8, modifiers: &[&str]) -> Result<WireFrame, String> {
    let (outer, inner) = rest.split_once('|').ok_or("a vxlan packet needs an inner one behind '|'")?;
    let words: Vec<&str> = outer.split_whitespace().collect();
    let [vni, source, ">", destination] = words.as_slice() else {
        return Err(format!("{outer:?} is not VNI FROM > TO"));
    };
    let inner = modified(modifiers, |before| packet(inner.trim(), link, before))?;
    let gateway = Mac([2, 0xff, 0, 0, 0, 1]);
    let outer = frame()
        .from(gateway, address(source)?)
        .to(gateway, address(destination)?)
        .ports(50_000, 8472)
        .traffic_class(class);
    let mut whole = inner.inside_vxlan(number(vni)?, outer);
    if modifiers.contains(&"outer bad checksum") {
        whole = whole.udp().with_bad_checksum();
    }
    Ok(whole.wire())
}

/// `DSCP.ECN` as `describe` prints it.
fn traffic_class(text: &str) -> Result<u8, String> {
    let (dscp, ecn) = text.split_once('.').ok_or(format!("{text:?} is not DSCP.ECN"))?;
    let ecn = ["not-ect", "ect1", "ect0", "ce"].iter().position(|name| *name == ecn);
    Ok(number::<u8>(dscp)? << 2 | ecn.ok_or(format!("{text:?} has no such ECN field"))? as u8)
}

fn address(word: &str) -> Result<IpAddr, String> {
    word.parse().map_err(|_| format!("{word:?} is no address"))
}

fn end(word: &str) -> Result<(IpAddr, u16), String> {
    match word.parse::<SocketAddr>() {
        Ok(end) => Ok((end.ip(), end.port())),
        Err(_) => Ok((address(word)?, 0)),
    }
}

fn packet(text: &str, link: Link, before: FrameBuilder) -> Result<FrameBuilder, String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let unknown = || format!("{text:?} is no packet");
    match words.as_slice() {
        ["vlan", tags, ..] => {
            let behind = text.split_once(tags).map_or("", |(_, rest)| rest.trim());
            let mut tagged = before;
            for tag in tags.split('.') {
                let (protocol, tag) = tag.strip_prefix('s').map_or((0x8100, tag), |tag| (0x88a8, tag));
                let (id, priority) = tag.split_once('p').unwrap_or((tag, "0"));
                tagged = tagged.tag(protocol, number::<u16>(priority)? << 13 | number::<u16>(id)?);
            }
            packet(behind, link, tagged)
        }
        ["class", class, ..] => {
            let behind = text.split_once(class).map_or("", |(_, rest)| rest.trim());
            packet(behind, link, before.traffic_class(traffic_class(class)?))
        }
        ["arp", "who-has", target, "tell", source] => {
            let asking = before.from(link.source, address(source)?).to(Mac::BROADCAST, address(target)?);
            Ok(asking.arp_request(address(target)?))
        }
        ["nd", "who-has", target, "tell", source] => {
            Ok(before.from(link.source, address(source)?).nd_solicitation(address(target)?))
        }
        ["ethertype", number, rest @ ..] => {
            let number = u16::from_str_radix(number.trim_start_matches("0x"), 16).map_err(|_| unknown())?;
            let built = before.from(link.source, "192.0.2.1").to(link.destination, "192.0.2.2").ethertype(number);
            trailer(built, rest)
        }
        [name, rest @ ..] => {
            let arrow = rest.iter().position(|word| *word == ">").filter(|at| *at > 0).ok_or_else(unknown)?;
            let (source, target) = (end(rest[arrow - 1])?, end(rest.get(arrow + 1).ok_or_else(unknown)?)?);
            let built = before.from(link.source, source.0).to(link.destination, target.0).ports(source.1, target.1);
            let built = transport(name, &rest[..arrow - 1], &rest[arrow + 2..], built)?;
            let skip = if built.1 { 4 } else { 0 };
            trailer(built.0, &rest[arrow + 2 + skip..])
        }
        [] => Err(unknown()),
    }
}

/// The layer-4 header; true if the words `id I seq S` were used up.
fn transport(name: &str, words: &[&str], behind: &[&str], built: FrameBuilder) -> Result<(FrameBuilder, bool), String> {
    Ok(match (name, words, behind) {
        ("tcp", flags, _) => (built.tcp(tcp_flags(flags)?), false),
        ("udp", [], _) => (built.udp(), false),
        ("sctp", [], _) => (built.sctp(1), false),
        ("protocol", [protocol], _) => (built.protocol(number(protocol)?), false),
        ("icmp" | "icmpv6", ["echo", "request"], ["id", id, "seq", sequence, ..]) => {
            (built.echo_request(number(id)?, number(sequence)?), true)
        }
        ("icmp" | "icmpv6", ["echo", "reply"], ["id", id, "seq", sequence, ..]) => {
            (built.echo_reply(number(id)?, number(sequence)?), true)
        }
        // RFC 792: an identifier and a sequence number, then three times, which `length` gives room for.
        ("icmp", ["timestamp", "request"], _) => (built.icmp(13, 0, [0, 7, 0, 1]), false),
        _ => return Err(format!("{name:?} {words:?} is no packet")),
    })
}

fn tcp_flags(words: &[&str]) -> Result<u8, String> {
    words.iter().try_fold(0, |flags, word| {
        let flag = match *word {
            "syn" => SYN,
            "fin" => FIN,
            "rst" => RST,
            "psh" => PSH,
            "ack" => ACK,
            "urg" => URG,
            "ece" => ECE,
            "cwr" => CWR,
            "none" => 0,
            _ => return Err(format!("{word:?} is no TCP flag")),
        };
        Ok(flags | flag)
    })
}

fn trailer(built: FrameBuilder, words: &[&str]) -> Result<FrameBuilder, String> {
    match words {
        [] => Ok(built),
        ["length", length, rest @ ..] => trailer(built.payload_of(number(length)?), rest),
        ["fragment", "atomic"] => Ok(built.fragment(0, false)),
        ["fragment", offset] => Ok(built.fragment(number(offset)?, false)),
        ["fragment", offset, "more"] => Ok(built.fragment(number(offset)?, true)),
        _ => Err(format!("{words:?} is not known at the end of a packet")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_engine::testing::describe;

    #[test]
    fn a_text_describes_the_packet_that_it_made() {
        let link = Link { source: Mac([2, 0, 0, 0, 0, 1]), destination: Mac([2, 0, 0, 0, 0, 2]) };
        for text in [
            "tcp syn 10.1.0.5:40000 > 10.2.0.7:80",
            "tcp psh ack [fd00::1]:1 > [fd00::2]:2 length 100",
            "udp 10.1.0.5:1 > 10.2.0.7:2 length 1400 fragment 0 more",
            "udp 10.1.0.5 > 10.1.0.6 length 8 fragment 1400",
            "udp fd00::1 > fd00::2 length 8 fragment 1232",
            "sctp 10.1.0.5:1 > 10.1.0.6:2",
            "icmp echo request 10.1.0.5 > 169.254.1.1 id 7 seq 1 length 4",
            "icmpv6 echo reply fd00::1 > fd00::2 id 7 seq 1",
            "arp who-has 169.254.1.1 tell 10.1.0.5",
            "nd who-has fe80::1 tell fd00:1::5",
            "vlan 20 udp 10.9.0.1:1 > 10.9.0.2:2 length 3",
            "vlan 20.7 udp 10.9.0.1:1 > 10.9.0.2:2",
            "vlan s100.20p5 class 46.ect0 udp 10.9.0.1:1 > 10.9.0.2:2",
            "class 0.ce vxlan vni 7 192.0.2.2 > 192.0.2.1 | class 10.ect1 udp [fd00::1]:1 > [fd00::2]:2",
            "protocol 47 10.1.0.5 > 10.1.0.6 length 24",
            "vxlan vni 7 192.0.2.2 > 192.0.2.1 | tcp ack [fd00::1]:1 > [fd00::2]:2",
        ] {
            let made = frame_of(text, link, |_| None).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(describe(&made.bytes), text);
        }
        assert!(frame_of("tcp sun 10.1.0.5:1 > 10.1.0.6:2", link, |_| None).is_err());
        assert!(frame_of("udp 10.1.0.5:1 > 10.1.0.6:2 ; shiny", link, |_| None).is_err());
    }
}
