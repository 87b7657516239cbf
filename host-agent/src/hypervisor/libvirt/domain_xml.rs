//! What a domain's XML says of its memory (libvirt, docs/formatdomain). libvirt has no calls for these.

use crate::hypervisor::METADATA;
use ballast_protocol::Bytes;
use roxmltree::{Document, Node};

/// What we want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DomainXml {
    /// `<memory>`: what the guest has with an empty balloon, plugged DIMMs included.
    pub memory: Bytes,
    /// `<currentMemory>`: what it is to keep; in a running domain, what it keeps.
    pub current: Bytes,
    pub has_balloon: bool,
    pub deflate_on_oom: bool,
    pub free_page_reporting: bool,
    /// Seconds between the balloon driver's reports; 0 for never.
    pub statistics_period: u64,
    pub cid: Option<u32>,
    pub min_guarantee: Option<Bytes>,
    pub metadata: Result<Vec<(String, String)>, String>,
}

/// Reads it; the error says what is missing.
pub(super) fn read(xml: &str) -> Result<DomainXml, String> {
    let document = Document::parse(xml).map_err(|e| format!("its XML cannot be read: {e}"))?;
    let domain = document.root_element();
    let child = |path: &[&str]| path.iter().try_fold(domain, |node, name| element(node, name));
    let memory = child(&["memory"]).and_then(size).ok_or("its XML has no <memory>")?;
    let current = child(&["currentMemory"]).and_then(size).unwrap_or(memory);
    let balloon = child(&["devices", "memballoon"]).filter(|b| b.attribute("model") != Some("none"));
    let is_on = |attribute| balloon.is_some_and(|b| b.attribute(attribute) == Some("on"));
    let period = balloon.and_then(|b| element(b, "stats")).and_then(|s| s.attribute("period")?.parse().ok());
    Ok(DomainXml {
        memory,
        current,
        has_balloon: balloon.is_some(),
        deflate_on_oom: is_on("autodeflate"),
        free_page_reporting: is_on("freePageReporting"),
        statistics_period: period.unwrap_or(0),
        cid: child(&["devices", "vsock", "cid"]).and_then(|c| c.attribute("address")?.parse().ok()),
        min_guarantee: child(&["memtune", "min_guarantee"]).and_then(size),
        metadata: child(&["metadata"]).map_or(Ok(Vec::new()), metadata),
    })
}

/// What `<metadata>` says in our namespace. libvirt lets each namespace have one element.
fn metadata(all: Node<'_, '_>) -> Result<Vec<(String, String)>, String> {
    // Another version of ours is a mistake worth telling, anybody else's namespace is not ours to judge.
    let family = METADATA.rsplit_once('/').map_or(METADATA, |(family, _version)| family);
    let namespace = |n: Node<'_, '_>| n.tag_name().namespace().unwrap_or_default().to_owned();
    let Some(ours) = all.children().find(|n| n.is_element() && namespace(*n).starts_with(family)) else {
        return Ok(Vec::new());
    };
    if namespace(ours) != METADATA {
        return Err(format!("its namespace is `{}`, and this version knows `{METADATA}`", namespace(ours)));
    }
    let name = ours.tag_name().name();
    if name != "vm" {
        return Err(format!("it is in <{name}>; write <ballast:vm xmlns:ballast='{METADATA}'>"));
    }
    if let Some(attribute) = ours.attributes().next() {
        let (key, value) = (attribute.name(), attribute.value());
        return Err(format!("`{key}` is an attribute; write <ballast:{key}>{value}</ballast:{key}>"));
    }
    let said = |n: Node<'_, '_>| (n.tag_name().name().to_owned(), n.text().unwrap_or_default().to_owned());
    Ok(ours.children().filter(Node::is_element).map(said).collect())
}

fn element<'a, 'input>(parent: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    parent.children().find(|n| n.has_tag_name(name))
}

/// A size with libvirt's units: KiB if none is given, and `KB` to `TB` are decimal.
fn size(node: Node<'_, '_>) -> Option<Bytes> {
    let scale: u64 = match node.attribute("unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KB" => 1_000,
        "k" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "T" | "TiB" => 1 << 40,
        _ => return None,
    };
    let number: u64 = node.text()?.trim().parse().ok()?;
    number.checked_mul(scale).map(Bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_with_everything() {
        let xml = "<domain type='kvm' id='3'><name>a</name><memory unit='GiB'>2</memory>
            <currentMemory unit='KiB'>1048576</currentMemory>
            <memtune><hard_limit unit='G'>9</hard_limit><min_guarantee unit='MiB'>512</min_guarantee></memtune>
            <devices><vsock model='virtio'><cid auto='no' address='42'/></vsock>
            <memballoon model='virtio' autodeflate='on' freePageReporting='on'><stats period='5'/>
            <alias name='balloon0'/></memballoon></devices></domain>";
        let expected = DomainXml {
            memory: Bytes::mib(2048),
            current: Bytes::mib(1024),
            has_balloon: true,
            deflate_on_oom: true,
            free_page_reporting: true,
            statistics_period: 5,
            cid: Some(42),
            min_guarantee: Some(Bytes::mib(512)),
            metadata: Ok(Vec::new()),
        };
        assert_eq!(read(xml), Ok(expected));
    }

    #[test]
    fn a_domain_with_nothing() {
        let xml = "<domain><memory>1024</memory><devices><memballoon model='none'/></devices></domain>";
        let read = read(xml).unwrap();
        assert_eq!((read.memory, read.current), (Bytes::mib(1), Bytes::mib(1)));
        assert_eq!((read.has_balloon, read.deflate_on_oom, read.statistics_period), (false, false, 0));
        assert_eq!((read.cid, read.min_guarantee), (None, None));
    }

    /// As an editor leaves it, and as `virsh metadata --set` does.
    #[test]
    fn our_metadata_is_found_among_others() {
        let domain = |metadata: &str| format!("<domain><memory>1024</memory><metadata>{metadata}</metadata></domain>");
        let said = |metadata: &str| read(&domain(metadata)).unwrap().metadata;
        let expected = vec![
            ("min".to_owned(), "1GiB".to_owned()),
            ("class".to_owned(), "high".to_owned()),
            ("x".into(), "".into()),
        ];
        let ours = "<os:info xmlns:os='http://libosinfo.org/xmlns/1.0'><min>5</min></os:info>\n
            <b:vm xmlns:b='https://ballast.dev/domain/1'>\n <b:min>1GiB</b:min><!-- why --> <b:class>high</b:class><b:x/>
            </b:vm>";
        assert_eq!(said(ours), Ok(expected.clone()));
        assert_eq!(
            said("<vm xmlns='https://ballast.dev/domain/1'><min>1GiB</min><class>high</class><x/></vm>"),
            Ok(expected)
        );
        assert_eq!(said("<vm><min>1GiB</min></vm>"), Ok(Vec::new()), "nobody's namespace");
        assert_eq!(said(""), Ok(Vec::new()));
        for (wrong, expected) in [
            ("<b:vm xmlns:b='https://ballast.dev/domain/2'/>", "this version knows `https://ballast.dev/domain/1`"),
            (
                "<b:domain xmlns:b='https://ballast.dev/domain/1'/>",
                "it is in <domain>; write <ballast:vm xmlns:ballast=",
            ),
            ("<b:vm min='1G' xmlns:b='https://ballast.dev/domain/1'/>", "write <ballast:min>1G</ballast:min>"),
        ] {
            let error = said(wrong).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn what_the_example_says_can_be_used() {
        let example = read(include_str!("../../../packaging/domain.xml")).unwrap();
        let said = crate::config::Overrides::from_elements(&example.metadata.unwrap()).unwrap();
        assert_eq!((said.min, said.weight, said.exempt), (Some(Bytes::mib(512)), Some(100), Some(false)));
        assert!(said.max == Some(example.memory) && said.class.is_some());
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        assert_eq!(read("<domain/>"), Err("its XML has no <memory>".into()));
        assert_eq!(read("<domain><memory unit='acres'>1</memory></domain>"), Err("its XML has no <memory>".into()));
        assert!(read("<domain>").unwrap_err().contains("cannot be read"));
        let huge = format!("<domain><memory unit='TiB'>{}</memory></domain>", u64::MAX);
        assert_eq!(read(&huge), Err("its XML has no <memory>".into()));
    }
}
