//! What a domain's XML says of its memory (libvirt, docs/formatdomain). libvirt has no calls for these.

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
    })
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

    #[test]
    fn what_cannot_be_read_is_said() {
        assert_eq!(read("<domain/>"), Err("its XML has no <memory>".into()));
        assert_eq!(read("<domain><memory unit='acres'>1</memory></domain>"), Err("its XML has no <memory>".into()));
        assert!(read("<domain>").unwrap_err().contains("cannot be read"));
        let huge = format!("<domain><memory unit='TiB'>{}</memory></domain>", u64::MAX);
        assert_eq!(read(&huge), Err("its XML has no <memory>".into()));
    }
}
