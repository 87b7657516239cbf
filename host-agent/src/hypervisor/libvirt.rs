#[derive(Debug)]
pub struct Libvirt;
