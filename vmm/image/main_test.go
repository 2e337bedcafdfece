package image

import (
	"os"
	"testing"
)

// TestMain makes this program the worker of the builds that its tests begin, as bangerd is of its
// own.
func TestMain(m *testing.M) {
	if IsWorker() {
		os.Exit(Work())
	}
	os.Exit(m.Run())
}
