package fs

import (
	"bytes"
	"fmt"
	"strings"

	"banger/vmm"
)

// knownHostsShow returns the host keys of all VMs that have one, by every name of the VM (sshd(8),
// SSH_KNOWN_HOSTS FILE FORMAT).
func knownHostsShow(r *request) ([]byte, error) {
	var b bytes.Buffer
	for _, v := range r.server.o.Manager.VMs() {
		key := v.HostKey()
		if key == "" {
			continue
		}
		s := v.Snapshot()
		var names []string
		if s.Resolves() {
			names = append(names, s.Name+"."+vmm.Zone, s.Name)
		}
		if a := s.GuestAddress(); a.IsValid() {
			names = append(names, a.String())
		}
		if len(names) > 0 {
			fmt.Fprintf(&b, "%s %s\n", strings.Join(names, ","), key)
		}
	}
	return b.Bytes(), nil
}
