package fs

// A node number is the serial of a VM, an image, a session or a uid's quotas, the row and a
// parameter (a port, a snapshot's number), so that finding a file is arithmetic. Serials are never
// used again, so a number always means the same file and needs no generation.
const (
	rowShift    = 16
	serialShift = 24
	maxRow      = 1<<(serialShift-rowShift) - 1
)

// Bits of a serial. VMs' own serials count from 1 and have none of them.
const (
	imageBit   = 1 << 38 // the rest is an image's number
	sessionBit = 1 << 37 // the rest is a session's serial
	quotaBit   = 1 << 36 // the rest is a uid, or that of defaultQuota
)

// rootID is FUSE_ROOT_ID of the protocol: row 0, parameter 1.
const rootID = 1

func nodeID(serial uint64, row uint8, param uint16) uint64 {
	return serial<<serialShift | uint64(row)<<rowShift | uint64(param)
}

// splitID returns nil for the row of a number that nodeID did not return.
func splitID(id uint64) (serial uint64, row *file, param uint16) {
	if i := int(uint8(id >> rowShift)); i < len(rows) {
		row = rows[i]
	}
	return id >> serialShift, row, uint16(id)
}

// plainID returns the number that all nodes of one file share: its inode number for stat(2).
func plainID(id uint64) uint64 {
	if serial, row, _ := splitID(id); row != nil && row.writable() {
		return nodeID(serial, row.number, 0)
	}
	return id
}
