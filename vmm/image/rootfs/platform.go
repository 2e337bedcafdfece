package rootfs

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Platform chooses the image among those of several platforms.
var Platform = v1.Platform{OS: "linux", Architecture: runtime.GOARCH}

// archNames are other names of architectures, as containerd's platforms package understands them.
var archNames = map[string]string{"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64"}

func sameArch(arch string) bool {
	arch = strings.ToLower(arch)
	if name := archNames[arch]; name != "" {
		arch = name
	}
	return arch == Platform.Architecture
}

// baseVariants are the variants that every processor of an architecture has.
var baseVariants = map[string]int{"amd64": 1, "arm64": 8}

// rankOf returns how demanding the variant of a platform is: 0 for what every host of this kind
// runs, more for v2, v3 and so on, -1 for a platform that does not fit. known is false if the
// platform is missing or lacks the system or the architecture.
func rankOf(p *v1.Platform) (rank int, known bool) {
	if p == nil {
		return 0, false
	}
	system := strings.ToLower(p.OS)
	if system != "" && system != Platform.OS || p.Architecture != "" && !sameArch(p.Architecture) {
		return -1, true
	}
	if p.Variant != "" {
		number, ok := strings.CutPrefix(strings.ToLower(p.Variant), "v")
		n, err := strconv.ParseUint(number, 10, 8)
		if !ok || err != nil {
			return -1, true
		}
		rank = max(0, int(n)-baseVariants[Platform.Architecture])
	}
	return rank, p.OS != "" && p.Architecture != ""
}

// platformText returns a platform for people. Its parts may be a stranger's.
func platformText(p *v1.Platform) string {
	parts := []string{p.OS, p.Architecture, p.Variant}
	if p.Variant == "" {
		parts = parts[:2]
	}
	for i, text := range parts {
		if quoted := strconv.Quote(text); quoted != `"`+text+`"` || len(text) > 20 {
			parts[i] = fmt.Sprintf("%.20q", text)
		}
	}
	return strings.Join(parts, "/")
}

func (c *Config) platform() *v1.Platform {
	return &v1.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}
}

// artifact reports whether a descriptor says that it is no image: an attestation of BuildKit's, or
// an artifact with a type.
func artifact(d *v1.Descriptor) bool {
	p := d.Platform
	return p != nil && p.OS == "unknown" && p.Architecture == "unknown" ||
		d.Annotations["vnd.docker.reference.type"] != "" ||
		d.ArtifactType != "" && !imageConfig(types.MediaType(d.ArtifactType))
}

// notImage returns the media type by which a manifest is no image's but another artifact's
// (image-spec, manifest.md), empty for an image. cosign signs with a manifest that has the
// configuration of an image, and no layer of one.
func notImage(m *v1.Manifest) string {
	if m.ArtifactType != "" && !imageConfig(types.MediaType(m.ArtifactType)) {
		return m.ArtifactType
	}
	if !imageConfig(m.Config.MediaType) {
		return string(m.Config.MediaType)
	}
	for _, l := range m.Layers {
		if imageLayer(l.MediaType) {
			return ""
		}
	}
	if len(m.Layers) > 0 {
		return string(m.Layers[0].MediaType)
	}
	return ""
}

// imageConfig reports whether a media type is that of an image's configuration. Old versions of
// docker gave none.
func imageConfig(t types.MediaType) bool {
	return t.IsConfig() || t == "" || t == "application/octet-stream"
}

// imageLayer reports whether a media type may be that of a layer. Compression is detected from a
// layer's content.
func imageLayer(t types.MediaType) bool {
	s := string(t)
	return t == "" || s == "application/octet-stream" ||
		strings.HasPrefix(s, "application/vnd.oci.image.layer.") ||
		strings.HasPrefix(s, "application/vnd.docker.image.rootfs.")
}
