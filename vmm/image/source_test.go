package image

import "testing"

// TestSourceKinds finds a way to make an image for every kind of source that the help tells of.
func TestSourceKinds(t *testing.T) {
	for _, k := range sourceKinds {
		if k.plan == nil {
			t.Errorf("nothing makes an image of %s", k.Form)
		}
	}
}
