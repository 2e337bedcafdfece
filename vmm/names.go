package vmm

import "fmt"

// special are names that programs take for something else than a VM. A resolver that searches the
// domain of VMs would find the VM in its place. So no VM gets such a name, and one of an earlier
// version that has it goes on without a name in DNS.
var special = map[string]string{
	"localhost":    "every machine is that itself (RFC 6761)",
	"localhost4":   "every machine is that itself",
	"localhost6":   "every machine is that itself",
	"localdomain":  "every machine is that itself",
	"ip6-loopback": "every machine is that itself",
	"invalid":      "no machine has that (RFC 6761)",
	"local":        "multicast DNS serves it (RFC 6762)",
	"onion":        "Tor serves it (RFC 7686)",
	"gateway":      "it is the default route's (nss-myhostname(8))",
	"wpad":         "browsers take their proxy from it",
	"isatap":       "IPv6 tunnels begin at it (RFC 5214)",

	"ip6-localhost":   "every machine is that itself",
	"ip6-localnet":    "hosts files have it",
	"ip6-mcastprefix": "hosts files have it",
	"ip6-allnodes":    "hosts files have it",
	"ip6-allrouters":  "hosts files have it",
}

// CheckVMName is CheckName for a new name of a VM. It also refuses special names, with ErrInvalid.
func CheckVMName(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if why := special[name]; why != "" {
		return fmt.Errorf("%q cannot be a VM's name: %s: %w", name, why, ErrInvalid)
	}
	return nil
}

// Resolves reports whether the VM's name stands for the VM where names are looked up. It does not
// for a special name, which a VM of an earlier version may have.
func (s *Snapshot) Resolves() bool { return special[s.Name] == "" }
