package collector

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"banger/vmm"
)

// linkStats fills in the counters of the VM's tap, from sysfs
// (Documentation/ABI/testing/sysfs-class-net-statistics). What the host sends into the tap is what the guest receives.
func (c *Collector) linkStats(s *vmm.Snapshot, st *Stats) {
	if c.tapName == nil || s.Config.Net != vmm.NetBridge {
		return
	}
	name := c.tapName(s.Serial)
	if name == "" || strings.ContainsAny(name, "/") || name == "." || name == ".." {
		return
	}
	dir := filepath.Join(c.sysNet, name, "statistics")
	st.NetRxBytes = readCounter(filepath.Join(dir, "tx_bytes"))
	st.NetTxBytes = readCounter(filepath.Join(dir, "rx_bytes"))
	st.NetRxPackets = readCounter(filepath.Join(dir, "tx_packets"))
	st.NetTxPackets = readCounter(filepath.Join(dir, "rx_packets"))
}

func readCounter(path string) *uint64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	n, ok := parseCounter(b)
	if !ok {
		return nil
	}
	return &n
}

// parseCounter parses a sysfs file of one unsigned number.
func parseCounter(b []byte) (uint64, bool) {
	n, err := strconv.ParseUint(string(bytes.TrimSpace(b)), 10, 64)
	return n, err == nil
}
