# Packer before 1.7 has QEMU built in and does not know this block: leave this file out there.
packer {
  required_plugins {
    qemu = {
      version = ">= 1.1.0"
      source  = "github.com/hashicorp/qemu"
    }
  }
}
