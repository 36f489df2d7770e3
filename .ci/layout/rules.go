package main

// maxLines is the length that a hand-written product file may have. A file that outgrows it has
// more than one subject.
const maxLines = 500

// layers says, for each top-level folder that holds Go, which top-level folders its packages may
// import. It holds for test files too: a test that reaches upward ties the layers together as
// firmly as the product would.
var layers = map[string][]string{
	"dataplane":    {"dataplane"},                                         // pure: runs anywhere, knows nobody
	"vtep":         {"dataplane", "vtep"},                                 // the seam to controlplane is a stream of deltas
	"controlplane": {"dataplane", "controlplane"},                         // may one day be another process than vtep
	"bench":        {"dataplane", "vtep", "controlplane", "bench"},        // sees everything, seen by cmd alone
	"cmd":          {"dataplane", "vtep", "controlplane", "bench", "cmd"}, // alone joins the planes
	".ci":          {},                                                    // runs on a tree that does not compile
}

// dataplaneOrder is the order of packages inside dataplane: a package imports only those on a
// lower step. Packages on the same step do not know each other.
var dataplaneOrder = map[string]int{
	"addr":     0,
	"checksum": 1,
	"header":   2,
	"frame":    3, "mtu": 3, "fdb": 3,
	"mss": 4, "icmperr": 4, "suppress": 4, "gso": 4, "probe": 4,
	"gro":     5, // knows the checksum states and sizes of gso, whose inverse it is
	"forward": 6,
}

// pureDeny lists the standard packages (with all below them) that product code of dataplane must
// not import, each with what to do instead.
var pureDeny = map[string]string{
	"C":           "write it in Go or Go assembly",
	"crypto/rand": "let the caller pass the random value in",
	"expvar":      "return the number and let vtep publish it",
	"flag":        "take the option as an argument",
	"io/ioutil":   "take a []byte",
	"log":         "return an error, a drop reason or a counter; vtep logs",
	"net":         "use net/netip and dataplane/addr; sockets belong to vtep",
	"os":          "take the data as an argument; files belong to vtep and cmd",
	"plugin":      "import the package",
	"syscall":     "move the system call to vtep",
	"testing":     "move it to a _test.go file or to dataplane/frametest",
}

// pureAllow lists imports that dataplane may have beyond pureDeny and the standard library. An
// empty set of names stands for the whole package.
var pureAllow = []struct {
	dir   string // the package that may, "" = all of dataplane
	path  string
	names map[string]bool
}{
	{path: "net/netip"},
	{path: "golang.org/x/sys/cpu"},
	{dir: "dataplane/addr", path: "net", names: map[string]bool{"ParseMAC": true, "HardwareAddr": true}},
}

// clockNames are the functions of package time that read or wait for a clock. The types and
// constants of that package are values like any other.
var clockNames = map[string]bool{
	"Now": true, "Since": true, "Until": true, "Sleep": true, "After": true, "AfterFunc": true,
	"Tick": true, "NewTicker": true, "NewTimer": true,
}

// decoderPaths are the modules that decode for people and for tests. They allocate for each layer
// of each packet, which is why the packet path and the daemon that carries it stay clear of them.
var decoderPaths = []string{"github.com/google/gopacket", "github.com/gopacket/gopacket"}

// decoderFree are the folders whose product code must not import a decoder; what daemonDir
// imports, directly or not, must not either.
var decoderFree = []string{"dataplane", "vtep", daemonDir}

const daemonDir = "cmd/overlayd"

// badFolders are names that say nothing of what is inside, so that anything ends up there, and
// internal, which would close the packages to the students who are to import them.
var badFolders = map[string]bool{
	"common": true, "helper": true, "helpers": true, "internal": true, "pkg": true,
	"types": true, "util": true, "utils": true,
}

// fixedVars are exported package variables that are values in all but name: Go has no constant of
// their type. Nothing may assign to them.
var fixedVars = map[string]bool{
	"dataplane/addr.Broadcast": true, // an array
}
