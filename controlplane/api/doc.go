// Package api is the local API of a node: the server that the daemon runs on a unix socket and the client
// that operator tools use. The protocol is overlayd.v1, defined in overlayd/v1/*.proto and spoken as Connect,
// gRPC or plain JSON over HTTP, whichever the caller likes. So curl will do:
//
//	curl --unix-socket /run/overlayd/overlayd.sock -H 'Content-Type: application/json' \
//	    -d '{}' http://overlayd/overlayd.v1.NodeService/GetStatus
//
// JSON is that of the proto3 mapping, with fields at their defaults written out. Numbers of 64 bits are
// strings there, as that mapping wants.
//
// There are two services. NodeService answers for the node alone, from a Node. ClusterService runs the cluster
// that the node is in, through a Cluster, which sees checked requests only: each field is checked first, and one
// at fault is named in the error. In JSON an unknown field is an error to ClusterService, for what it might have
// meant would not be done; NodeService, which changes nothing, passes over it.
//
// Whoever may connect to the socket may read everything, and change the cluster: the socket has mode 0660 in a
// directory with mode 0750, and there is no other authentication. What one caller may take of the daemon in time
// and memory is bounded (limits.go).
//
// Concurrency: a Server calls its Node and its Cluster from one goroutine a request, so they must allow concurrent
// calls.
// Serve runs net/http's accept loop in one goroutine ("api accept") and joins it before it returns; net/http
// itself runs one goroutine a connection, which Serve ends too. A Client may be used by many goroutines.
//
// The package must not import vtep: the daemon adapts its VTEP to the interface Node. Nor must it import anything of
// controlplane but the code generated below it: the daemon adapts the control plane to the interface Cluster.
package api

//go:generate sh -c "protoc -I . --plugin=protoc-gen-go=$(go tool -n protoc-gen-go) --plugin=protoc-gen-connect-go=$(go tool -n protoc-gen-connect-go) --go_out=. --go_opt=paths=source_relative --connect-go_out=. --connect-go_opt=paths=source_relative,simple overlayd/v1/cluster.proto overlayd/v1/node.proto"
