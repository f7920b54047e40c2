//! Questions to name servers and their answers, as messages (RFC 1035, 2782, 3596, 6891).
//!
//! Nothing of an answer is taken that the question does not lead to: the records of the name that was asked for, or of
//! the one its aliases end at.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use simple_dns::rdata::{OPT, RData};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, ResourceRecord, TYPE};

/// Bytes of an answer over UDP we ask for: what fits into one packet nearly everywhere (RFC 9715).
const UDP_SIZE: u16 = 1232;
/// Aliases followed in one answer.
const MOST_ALIASES: usize = 16;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    V4,
    V6,
    Service,
}

/// A record of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) priority: u16,
    pub(super) weight: u16,
    pub(super) port: u16,
    pub(super) host: String,
}

/// What an answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// There are some, for so long.
    Addresses(Vec<IpAddr>, Duration),
    Services(Vec<Service>, Duration),
    /// The name exists and has none of the kind.
    Empty,
    /// There is no such name.
    NoName,
    /// It did not fit into one packet.
    Truncated,
    /// The server does not take our size of answers (RFC 6891, 7).
    NoExtension,
    /// The server can or will not say.
    Refused(String),
}

impl Kind {
    fn code(self) -> TYPE {
        match self {
            Self::V4 => TYPE::A,
            Self::V6 => TYPE::AAAA,
            Self::Service => TYPE::SRV,
        }
    }
}

/// A question as a message; `None` when the name does not fit into one.
pub(super) fn question(id: u16, name: &str, kind: Kind, extended: bool) -> Option<Vec<u8>> {
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let name = Name::new(name).ok()?;
    packet.questions.push(Question::new(name, kind.code().into(), CLASS::IN.into(), false));
    if extended {
        *packet.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size: UDP_SIZE, version: 0 });
    }
    packet.build_bytes_vec().ok()
}

/// What a message says to that question; `Err` when it is no answer to it, and why.
pub(super) fn answer(bytes: &[u8], id: u16, name: &str, kind: Kind) -> Result<Answer, &'static str> {
    let packet = Packet::parse(bytes).map_err(|_| "it is no message of a name server")?;
    let asked = labels(name);
    let is_it = |question: &Question<'_>| {
        question.qtype == QTYPE::TYPE(kind.code())
            && question.qclass == QCLASS::CLASS(CLASS::IN)
            && same(&question.qname, &asked)
    };
    if packet.id() != id || !packet.has_flags(PacketFlag::RESPONSE) {
        return Err("it answers something else");
    }
    // A server that could not read the question may leave it out.
    if packet.rcode() == RCODE::FormatError && packet.questions.is_empty() {
        return Ok(Answer::NoExtension);
    }
    if packet.questions.len() != 1 || !packet.questions.iter().all(is_it) {
        return Err("it answers something else");
    }
    if packet.has_flags(PacketFlag::TRUNCATION) {
        return Ok(Answer::Truncated);
    }
    Ok(match packet.rcode() {
        RCODE::NoError => records(&packet.answers, asked, kind),
        RCODE::NameError => Answer::NoName,
        RCODE::FormatError | RCODE::BADVERS => Answer::NoExtension,
        RCODE::ServerFailure => Answer::Refused("SERVFAIL".to_owned()),
        RCODE::NotImplemented => Answer::Refused("NOTIMP".to_owned()),
        RCODE::Refused => Answer::Refused("REFUSED".to_owned()),
        other => Answer::Refused(format!("{other:?}")),
    })
}

/// The records of the kind, of the name or of the one its aliases lead to. An alias bounds how long they hold.
fn records(answers: &[ResourceRecord<'_>], mut name: Vec<Vec<u8>>, kind: Kind) -> Answer {
    let (mut addresses, mut services, mut seconds) = (Vec::new(), Vec::new(), u32::MAX);
    for _ in 0..=MOST_ALIASES {
        let own = || answers.iter().filter(|record| record.class == CLASS::IN && same(&record.name, &name));
        for record in own() {
            match (&record.rdata, kind) {
                (RData::A(a), Kind::V4) => addresses.push(IpAddr::V4(Ipv4Addr::from(a.address))),
                (RData::AAAA(a), Kind::V6) => addresses.push(IpAddr::V6(Ipv6Addr::from(a.address))),
                (RData::SRV(srv), Kind::Service) => services.push(Service {
                    priority: srv.priority,
                    weight: srv.weight,
                    port: srv.port,
                    host: srv.target.to_string().to_ascii_lowercase(),
                }),
                _ => continue,
            }
            seconds = seconds.min(record.ttl);
        }
        let holds = Duration::from_secs(u64::from(seconds));
        if !addresses.is_empty() {
            return Answer::Addresses(addresses, holds);
        }
        if !services.is_empty() {
            return Answer::Services(services, holds);
        }
        let alias = own().find_map(|record| match &record.rdata {
            RData::CNAME(alias) => Some((record.ttl, alias.0.as_bytes().map(<[u8]>::to_vec).collect())),
            _ => None,
        });
        let Some((ttl, next)) = alias else { break };
        (name, seconds) = (next, seconds.min(ttl));
    }
    Answer::Empty
}

fn labels(name: &str) -> Vec<Vec<u8>> {
    name.split('.').filter(|label| !label.is_empty()).map(|label| label.as_bytes().to_vec()).collect()
}

/// Upper and lower case are the same in names, and in no other way (RFC 4343).
fn same(name: &Name<'_>, labels: &[Vec<u8>]) -> bool {
    name.get_labels().len() == labels.len()
        && name.as_bytes().zip(labels).all(|(own, other)| own.eq_ignore_ascii_case(other))
}

/// Reads any bytes as an answer to questions they might answer: for tests with input of any kind.
pub fn any_answer(bytes: &[u8]) {
    let id = bytes.first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
    for kind in [Kind::V4, Kind::V6, Kind::Service] {
        match answer(bytes, id, "a.example", kind) {
            Ok(Answer::Addresses(all, _)) => {
                assert!(all.iter().all(|ip| ip.is_ipv4() == (kind == Kind::V4)) && !all.is_empty());
            }
            Ok(Answer::Services(all, _)) => assert!(!all.is_empty()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use simple_dns::rdata::{A, AAAA, CNAME, SRV};

    use super::*;

    fn reply(id: u16, name: &str, kind: Kind, records: Vec<ResourceRecord<'_>>) -> Vec<u8> {
        let mut packet = Packet::new_reply(id);
        let name = Name::new(name).unwrap();
        packet.questions.push(Question::new(name, kind.code().into(), CLASS::IN.into(), false));
        packet.answers = records;
        packet.build_bytes_vec_compressed().unwrap()
    }

    fn record<'a>(name: &'a str, ttl: u32, data: RData<'a>) -> ResourceRecord<'a> {
        ResourceRecord::new(Name::new_unchecked(name), CLASS::IN, ttl, data)
    }

    fn a(address: [u8; 4]) -> RData<'static> {
        RData::A(A { address: u32::from_be_bytes(address) })
    }

    #[test]
    fn a_question_says_what_is_asked() {
        let bytes = question(7, "db.example.", Kind::V6, true).unwrap();
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!((packet.id(), packet.questions.len()), (7, 1));
        assert!(packet.has_flags(PacketFlag::RECURSION_DESIRED) && !packet.has_flags(PacketFlag::RESPONSE));
        assert_eq!(packet.questions[0].qname.to_string(), "db.example");
        assert_eq!(packet.opt().map(|opt| opt.udp_packet_size), Some(UDP_SIZE));
        assert!(question(7, &"a".repeat(70), Kind::V4, false).is_none());
    }

    #[test]
    fn an_answer_is_taken_only_for_its_question() {
        let bytes = reply(7, "db.example", Kind::V4, vec![record("DB.example", 60, a([10, 0, 0, 1]))]);
        let one = Answer::Addresses(vec![[10, 0, 0, 1].into()], Duration::from_secs(60));
        assert_eq!(answer(&bytes, 7, "Db.Example.", Kind::V4), Ok(one));
        for (id, name, kind) in
            [(8, "db.example", Kind::V4), (7, "db.example.com", Kind::V4), (7, "db.example", Kind::V6)]
        {
            assert_eq!(answer(&bytes, id, name, kind), Err("it answers something else"));
        }
        let asked = question(7, "db.example", Kind::V4, false).unwrap();
        assert!(answer(&asked, 7, "db.example", Kind::V4).is_err(), "a question is no answer");
    }

    #[test]
    fn aliases_are_followed_and_bound_the_time() {
        let alias = |to| RData::CNAME(CNAME(Name::new_unchecked(to)));
        let records = vec![
            record("b.example", 300, alias("c.example")),
            record("a.example", 20, alias("b.example")),
            record("c.example", 60, a([10, 0, 0, 3])),
            record("evil.example", 60, a([10, 6, 6, 6])),
        ];
        let got = answer(&reply(1, "a.example", Kind::V4, records), 1, "a.example", Kind::V4);
        assert_eq!(got, Ok(Answer::Addresses(vec![[10, 0, 0, 3].into()], Duration::from_secs(20))));
        let round = vec![record("a.example", 1, alias("b.example")), record("b.example", 1, alias("a.example"))];
        assert_eq!(answer(&reply(1, "a.example", Kind::V4, round), 1, "a.example", Kind::V4), Ok(Answer::Empty));
    }

    #[test]
    fn services_and_other_families() {
        let host = Name::new_unchecked("Web-1.example");
        let srv = RData::SRV(SRV { priority: 1, weight: 20, port: 8080, target: host });
        let bytes = reply(3, "_web._tcp.example", Kind::Service, vec![record("_web._tcp.example", 5, srv)]);
        let service = Service { priority: 1, weight: 20, port: 8080, host: "web-1.example".to_owned() };
        let expected = Answer::Services(vec![service], Duration::from_secs(5));
        assert_eq!(answer(&bytes, 3, "_web._tcp.example", Kind::Service), Ok(expected));
        let six = RData::AAAA(AAAA { address: Ipv6Addr::LOCALHOST.into() });
        let bytes = reply(3, "a.example", Kind::V6, vec![record("a.example", 0, six)]);
        let expected = Answer::Addresses(vec![Ipv6Addr::LOCALHOST.into()], Duration::ZERO);
        assert_eq!(answer(&bytes, 3, "a.example", Kind::V6), Ok(expected));
    }

    #[test]
    fn what_servers_refuse() {
        for (code, expected) in [
            (RCODE::NameError, Answer::NoName),
            (RCODE::NoError, Answer::Empty),
            (RCODE::ServerFailure, Answer::Refused("SERVFAIL".to_owned())),
            (RCODE::FormatError, Answer::NoExtension),
        ] {
            let mut packet = Packet::new_reply(9);
            let name = Name::new_unchecked("a.example");
            packet.questions.push(Question::new(name, TYPE::A.into(), CLASS::IN.into(), false));
            *packet.rcode_mut() = code;
            let bytes = packet.build_bytes_vec().unwrap();
            assert_eq!(answer(&bytes, 9, "a.example", Kind::V4), Ok(expected));
            packet.set_flags(PacketFlag::TRUNCATION);
            let bytes = packet.build_bytes_vec().unwrap();
            assert_eq!(answer(&bytes, 9, "a.example", Kind::V4), Ok(Answer::Truncated));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            any_answer(&bytes);
        }

        /// An answer with some bytes changed or cut off.
        #[test]
        fn no_damage_panics(at in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..4), keep in any::<usize>()) {
            let host = Name::new_unchecked("h.a.example");
            let srv = RData::SRV(SRV { priority: 1, weight: 20, port: 8080, target: host });
            let alias = RData::CNAME(CNAME(Name::new_unchecked("b.a.example")));
            let records = vec![record("a.example", 5, alias), record("b.a.example", 5, a([1; 4])), record("a.example", 5, srv)];
            for kind in [Kind::V4, Kind::Service] {
                let mut bytes = reply(0x4142, "a.example", kind, records.clone());
                let length = bytes.len();
                for (at, value) in &at {
                    bytes[at % length] = *value;
                }
                bytes.truncate(length - keep % (length / 2));
                any_answer(&bytes);
            }
        }
    }
}
