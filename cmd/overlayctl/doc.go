// Command overlayctl is the operator's view of a node and of its cluster: it asks the overlayd of this host, over
// its unix socket, and prints tables or JSON.
//
//	overlayctl init [--advertise ADDRESS]... [--name NAME]
//	overlayctl join (--token TOKEN | --token-file FILE) [--advertise ADDRESS]... [--name NAME] HOST:PORT...
//	overlayctl leave [--force]
//	overlayctl token show [worker|manager] [--quiet]
//	overlayctl token rotate worker|manager [--quiet]
//	overlayctl node ls
//	overlayctl node inspect [NODE]
//	overlayctl node promote|demote|drain|activate NODE
//	overlayctl node rm NODE [--force]
//	overlayctl network create NAME [--subnet PREFIX]... [--gateway ADDRESS]... [--vni N] [--mtu BYTES]
//	overlayctl network ls
//	overlayctl network inspect|rm NETWORK
//	overlayctl endpoint add NETWORK --netns NAMESPACE [--name NAME] [--ip ADDRESS]... [--mac ADDRESS] [--interface NAME]
//	overlayctl endpoint ls [NETWORK] [--node NODE]
//	overlayctl endpoint rm NETWORK ENDPOINT
//	overlayctl cluster status
//	overlayctl cluster recover --data-dir DIR
//	overlayctl backup FILE|-
//	overlayctl restore FILE|-
//	overlayctl status
//	overlayctl fdb NETWORK
//	overlayctl peers
//	overlayctl mtu [NETWORK]
//	overlayctl drops [--follow] [--network NETWORK]
//	overlayctl version
//	overlayctl lab run|up|exec|status|down
//	overlayctl bench [show FILE]
//	overlayctl completion bash|zsh|fish|powershell
//
// The socket is that of --socket, else of the environment variable OVERLAYD_SOCKET, else
// /run/overlayd/overlayd.sock. With -o json an answer is printed as the API sends it; `drops --follow -o
// json` prints one object a line. A node that is in a cluster adds a field "cluster" to those of `status` and
// `network ls`. The exit code is 0 when all went well, 1 when something failed, such as a
// daemon that does not run, and 2 when the command line is at fault.
//
// `lab` is that of bench/lab: hosts in network namespaces to try things out on. `bench` is that of
// bench/compare: overlayd measured beside the kernel's VXLAN. Neither needs a daemon on this host; nor does
// `cluster recover`, which works on the data of one that does not run.
//
// Concurrency: one goroutine, besides those of net/http and bench. The package must not import vtep: all
// that it knows of a daemon that runs comes through controlplane/api.
package main
